"""Finds error objects in 2xx answers, and the kind of failure that their code means. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

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
)
_STATUS = re.compile(r"(?:HTTP[ _/-]?(?:1\.[01] )?)?([1-5][0-9]{2})(?:\.0)?\Z", re.IGNORECASE)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NOT_A_WORD = re.compile(r"[^a-z0-9]+")

# The first entry that matches the code's words counts.
_WORDS: tuple[tuple[FailureKind, tuple[str, ...]], ...] = (
    (
        FailureKind.QUOTA,
        (
            "insufficient_quota",
            "insufficient_balance",
            "insufficient_credit",
            "insufficient_funds",
            "payment_required",
            "billing",
            "out_of_credit",
            "no_credit",
            "arrear",
        ),
    ),
    (
        FailureKind.RATE_LIMITED,
        (
            "rate_limit",
            "ratelimit",
            "too_many_requests",
            "throttl",
            "resource_exhausted",
            "quota_exceeded",
            "slow_down",
            "concurrency",
            "limit_requests",
            "limit_burst",
            "too_early",
        ),
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


def kind_of_error(error: Any) -> FailureKind:
    """The kind of failure by an error object's code: an HTTP status, else the words of its code, status or type.

    A text counts as a code if it has no spaces. BAD_RESPONSE if no code is known.
    """
    codes = list(_codes(error, depth=0))
    by_words = [_kind_of_words(code) for code in codes if isinstance(code, str)]
    kinds = [kind for kind in by_words if kind is not None]
    for code in codes:
        status = _status_of(code)
        if status is not None:
            return _kind_of_status(status, kinds)
    return kinds[0] if kinds else FailureKind.BAD_RESPONSE


def _kind_of_status(status: int, kinds: list[FailureKind]) -> FailureKind:
    if status == HTTPStatus.UNAUTHORIZED:
        return FailureKind.UNAUTHORIZED
    if status == HTTPStatus.PAYMENT_REQUIRED:
        return FailureKind.QUOTA
    if status in (425, 429):
        return FailureKind.QUOTA if FailureKind.QUOTA in kinds else FailureKind.RATE_LIMITED
    if status in (408, 409) or status >= 500:
        return FailureKind.SERVER_ERROR
    return FailureKind.REJECTED if status >= 400 else FailureKind.BAD_RESPONSE


def _kind_of_words(code: str) -> FailureKind | None:
    if len(code) > 100 or " " in code.strip():
        return None
    words = _NOT_A_WORD.sub("_", _HUMP.sub("_", code).lower())
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
        for name in ("error", "errors", "detail"):
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
