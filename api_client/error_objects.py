"""Finds error objects in 2xx answers, and the kind of failure that a status and a code mean. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from api_client.purse import (
    BUSY_CODES,
    EMPTY_CODES,
    is_busy_code,
    is_empty_code,
    normalise_code,
    speaks_of_an_empty_account,
)
from schemas.failure import FailureKind

_CODE_NAMES = (
    "code",
    "status_code",
    "http_status",
    "http_code",
    "status",
    "error_code",
    "type",
    "error_type",
    "limit_source",
    "reason",
)
_STATUS = re.compile(r"(?:HTTP[ _/-]?(?:1\.[01] )?)?([1-5][0-9]{2})(?:\.0)?\Z", re.IGNORECASE)

_OF_AN_EMPTY_ACCOUNT = frozenset({400, 403, 412, 429})
_OF_A_RATE_BY_CODE = frozenset({403, 503, 529})
_AMBIGUOUS = _OF_AN_EMPTY_ACCOUNT | _OF_A_RATE_BY_CODE | {402}

# The first entry that matches the code's words counts.
_WORDS: tuple[tuple[FailureKind, tuple[str, ...]], ...] = (
    (
        FailureKind.QUOTA,
        (*EMPTY_CODES, "payment_required", "billing"),
    ),
    (
        FailureKind.RATE_LIMITED,
        (*BUSY_CODES, "resource_exhausted", "quota_exceeded", "too_early"),
    ),
    (
        FailureKind.UNAUTHORIZED,
        ("api_key", "apikey", "authentication", "unauthorized", "unauthenticated", "invalid_token"),
    ),
    (
        FailureKind.REJECTED,
        (
            "context_length",
            "invalid_request",
            "invalid_argument",
            "invalid_parameter",
            "invalid_prompt",
            "invalid_value",
            "bad_request",
            "unprocessable",
            "validation",
            "content_policy",
            "content_filter",
            "responsible_ai",
            "not_found",
            "not_allowed",
            "unsupported",
            "not_supported",
            "too_large",
            "too_long",
            "max_length",
            "permission",
            "forbidden",
        ),
    ),
    (
        FailureKind.SERVER_ERROR,
        (
            "overloaded",
            "server_error",
            "internal",
            "unavailable",
            "api_error",
            "bad_gateway",
            "gateway",
            "upstream",
            "timeout",
            "timed_out",
            "deadline_exceeded",
            "capacity",
            "aborted",
        ),
    ),
)


def find_error(data: Any) -> Any:
    """The error object in a decoded 2xx body, or None.

    It may be at the top (also in a list of one), beside the choices, in a choice or in its message; a `finish_reason`
    of "error" counts, too. An error that is null or empty, or has only such fields, does not count.
    """
    if isinstance(data, list):
        return (
            find_error(data[0]) if data and isinstance(data[0], dict) and "choices" not in data[0] else None
        )
    if not isinstance(data, dict):
        return None
    if _is_real(data.get("error")):
        return data["error"]
    choices = data.get("choices")
    if not choices and _is_real(data.get("errors")):
        return data["errors"]
    if data.get("object") == "error" or data.get("type") == "error":
        return data
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        message = choice.get("message")
        for place in (choice, message):
            if isinstance(place, dict) and _is_real(place.get("error")):
                return place["error"]
        if _is_error_reason(choice.get("finish_reason")):
            return {"message": "the answer's finish_reason is error"}
    return None


def status_of_error(error: Any) -> int | None:
    """The HTTP status (400 to 599) that is the code of an error object, or None."""
    for code in _codes(error, depth=0):
        status = _status_of(code)
        if status is not None:
            return status if status >= 400 else None
    return None


def kind_of_error(error: Any, words: str = "", *, tells_a_wait: bool = False) -> FailureKind:
    """The kind of failure by an error object's code: an HTTP status, else the words of its code, status or type.

    A text counts as a code if it has no spaces. BAD_RESPONSE if no code is known. `words` and `tells_a_wait` are
    those of `kind_of_status`.
    """
    codes = list(_codes(error, depth=0))
    for code in codes:
        status = _status_of(code)
        if status is not None:
            return kind_of_status(status, error, words, tells_a_wait=tells_a_wait)
    by_words = (_kind_of_words(code) for code in codes if isinstance(code, str))
    return next((kind for kind in by_words if kind is not None), FailureKind.BAD_RESPONSE)


def kind_of_status(status: int, error: Any, words: str, *, tells_a_wait: bool) -> FailureKind:
    """The kind of failure by an HTTP status, and by the body where the status has several meanings.

    `error`: the decoded body, or an error object in it. `words`: the endpoint's message. `tells_a_wait`: the answer
    says when to come again.
    """
    if status == HTTPStatus.UNAUTHORIZED:
        return FailureKind.UNAUTHORIZED
    if status in _AMBIGUOUS:
        codes = [code for code in _codes(error, depth=0) if isinstance(code, str)]
        if status == HTTPStatus.PAYMENT_REQUIRED:
            is_busy = is_busy_code(codes) or (tells_a_wait and not is_empty_code(codes))
            return FailureKind.RATE_LIMITED if is_busy else FailureKind.QUOTA
        if status in _OF_AN_EMPTY_ACCOUNT and (
            is_empty_code(codes) or speaks_of_an_empty_account(words, tells_a_wait=tells_a_wait)
        ):
            return FailureKind.QUOTA
        if status in _OF_A_RATE_BY_CODE and is_busy_code(codes):
            return FailureKind.RATE_LIMITED
    if status in (425, 429):
        return FailureKind.RATE_LIMITED
    if status in (408, 409) or status >= 500:
        return FailureKind.SERVER_ERROR
    return FailureKind.REJECTED if status >= 300 else FailureKind.BAD_RESPONSE


def _kind_of_words(code: str) -> FailureKind | None:
    words = normalise_code(code)
    for kind, known in _WORDS:
        if any(word in words for word in known):
            return kind
    return None


def _codes(error: Any, depth: int) -> Iterator[Any]:
    """The values that may be codes, the most specific first: those of the object, then of the objects in it."""
    if isinstance(error, str):
        yield error
    elif isinstance(error, list):
        for one in error[:3]:
            yield from _codes(one, depth + 1) if depth < 3 else ()
    elif isinstance(error, dict):
        yield from (error[name] for name in _CODE_NAMES if _is_code(error.get(name)))
        for name in ("error", "errors", "detail", "metadata"):
            if isinstance(error.get(name), (dict, list)) and depth < 3:
                yield from _codes(error[name], depth + 1)


def _is_code(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _status_of(code: Any) -> int | None:
    if isinstance(code, str):
        found = _STATUS.match(code.strip())
        return int(found[1]) if found else None
    if not _is_code(code):
        return None
    if isinstance(code, float) and not code.is_integer():  # also NaN and infinity
        return None
    return int(code) if 100 <= code <= 599 else None


def _is_error_reason(reason: Any) -> bool:
    return isinstance(reason, str) and reason.strip().lower() == "error"


def _is_real(error: Any, depth: int = 0) -> bool:
    """Whether an `error` field holds an error. Some servers send it empty."""
    if depth > 5:
        return bool(error)
    if isinstance(error, str):
        return error.strip().lower() not in ("", "null", "none", "false", "ok", "success")
    if isinstance(error, dict):
        if _status_of(error.get("code")) == HTTPStatus.OK:
            return False
        return any(_is_real(value, depth + 1) for value in error.values())
    if isinstance(error, list):
        return any(_is_real(one, depth + 1) for one in error)
    return bool(error)
