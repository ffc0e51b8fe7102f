"""What an answer means: turns an HTTP answer (status, headers, body) into an `Answer` or a `Failure`. Pure.

What follows for the job is not decided here: see docs/answers.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import orjson

from api_client.completions import NoCompletion, parse_completion, parse_spent
from api_client.error_objects import find_error, kind_of_error, kind_of_status, status_of_error
from api_client.rate_hints import parse_rate_hints, parse_told_rate_hints
from api_client.retry_hints import parse_retry_after, parse_should_retry, parse_told_wait
from api_client.streams import assemble, encode, looks_like_stream
from api_client.words import clean_words, find_words
from schemas.completion import ChatCompletion
from schemas.failure import Failure, FailureKind
from schemas.rates import RateHints

LONGEST_ERROR_BODY = 64 * 1024
_CUT_OFF = "an event stream came, although streaming is off, and ended in the middle of its answer"
_LATER = frozenset({FailureKind.RATE_LIMITED, FailureKind.QUOTA})
_OVERLOADED = frozenset({503, 529})
_MODEL_LISTS = ("data", "models", "result", "results", "items", "model_list")
_MODEL_NAMES = ("id", "model", "name", "model_name")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answered call, which was paid for.

    `raw`: the decoded body as it came; for an event stream, the completion that was put together from it.
    `latency_s`: the duration of the whole call. `request_id`: the header `x-request-id`, else the body's `request_id`.
    `rate_hints`: what its headers say of rate limits; None if they say nothing.
    """

    completion: ChatCompletion
    raw: bytes = field(repr=False)
    http_status: int
    request_id: str | None
    latency_s: float
    rate_hints: RateHints | None = None


def decide_completion(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    wall_now_s: float,
    latency_s: float = 0.0,
    secret: str | None = None,
) -> Answer | Failure:
    """The completion, or the failure without one. Header names in lower case. `secret` is removed from all texts."""
    if not 200 <= status < 300:
        return decide_failure(status, headers, body, wall_now_s=wall_now_s, secret=secret)
    data, raw, is_whole = _parse_answer(body)
    error = find_error(data)
    if error is not None:
        return _error_inside(status, headers, body, data, error, wall_now_s, secret)
    try:
        completion = parse_completion(data)
    except NoCompletion as exc:
        return _no_use(status, headers, body, data, str(exc), wall_now_s, secret)
    if not is_whole:
        return _no_use(status, headers, body, data, _CUT_OFF, wall_now_s, secret)
    rate_hints = parse_rate_hints(headers, wall_now_s=wall_now_s)
    return Answer(completion, raw, status, _request_id(headers, data, secret), latency_s, rate_hints)


def decide_models(
    status: int, headers: Mapping[str, str], body: bytes, *, wall_now_s: float, secret: str | None = None
) -> list[str] | Failure:
    """The model ids in the endpoint's order, each once; or the failure without any.

    The list may be the body itself, or under `data`, `models` or a similar name. An entry is a text, or an object with
    an `id`, a `model` or a `name`; others are left out.
    """
    if not 200 <= status < 300:
        return decide_failure(status, headers, body, wall_now_s=wall_now_s, secret=secret)
    data = parse_json(body)
    models = _find_models(data)
    if not models and (error := find_error(data)) is not None:
        return _error_inside(status, headers, body, data, error, wall_now_s, secret)
    if models is None:
        return _no_use(status, headers, body, data, "there is no list of models in it", wall_now_s, secret)
    return models


def _find_models(data: Any) -> list[str] | None:
    """The ids of the first list that has any. An empty list counts only under one of the known names."""
    if isinstance(data, list):
        return _model_ids(data) or None
    if not isinstance(data, dict):
        return None
    found: list[str] | None = None
    for name in _MODEL_LISTS:
        inner = data.get(name)
        if isinstance(inner, dict):
            inner = next((inner[n] for n in _MODEL_LISTS if isinstance(inner.get(n), list)), None)
        if isinstance(inner, list):
            found = found or _model_ids(inner)
    return found


def _model_ids(entries: list[Any]) -> list[str]:
    ids = [
        next((entry[name] for name in _MODEL_NAMES if isinstance(entry.get(name), str) and entry[name]), None)
        if isinstance(entry, dict)
        else entry
        for entry in entries
    ]
    return list(dict.fromkeys(model for model in ids if isinstance(model, str) and model))


def decide_failure(
    status: int, headers: Mapping[str, str], body: bytes, *, wall_now_s: float, secret: str | None = None
) -> Failure:
    """The failure for a status other than 2xx, with the endpoint's message if there is one."""
    data = parse_json(body)
    if data is None and looks_like_stream(body):
        data = assemble(body).data
    if 300 <= status < 400:
        words = _where_it_points(headers)
    else:
        words = find_words(data, _text(body)) or _bare_status(status)
    message = clean_words(words, secret=secret) or _bare_status(status)
    kind_of = partial(kind_of_status, status, data, words)
    return _failure(kind_of, message, words, status, headers, body, data, wall_now_s, secret)


def parse_json(body: bytes) -> Any:
    """The decoded JSON, or None if the body is no JSON.

    Lone surrogates, NaN and bad UTF-8 are accepted: a completion that holds them was paid for.
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body.decode(json.detect_encoding(body), "replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def _parse_answer(body: bytes) -> tuple[Any, bytes, bool]:
    """The decoded answer, its bytes, and whether it is whole. An event stream is put together to one completion."""
    data = parse_json(body)
    if data is None and looks_like_stream(body):
        assembled = assemble(body)
        if assembled.data is not None:
            with suppress(RecursionError):  # nested too deeply to be encoded again
                return assembled.data, encode(assembled.data), assembled.is_whole
    return data, body, True


def _error_inside(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    data: Any,
    error: Any,
    wall_now_s: float,
    secret: str | None,
) -> Failure:
    """The failure for an error object in a 2xx, with the object's message.

    If its code is an HTTP status, that becomes the failure's status.
    """
    words = find_words({"error": error}, "") or "no words with it"
    message = clean_words(f"HTTP {status} with an error in it: {words}", secret=secret)
    told = status_of_error(error) or status
    kind_of = partial(kind_of_error, error, words)
    return _failure(kind_of, message, words, told, headers, body, data, wall_now_s, secret)


def _no_use(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    data: Any,
    why: str,
    wall_now_s: float,
    secret: str | None,
) -> Failure:
    """The failure for a 2xx without a usable answer. It quotes only an error object or the title of a page."""
    text = _text(body)
    if not body.strip():
        why = "the body is empty"
    elif why != _CUT_OFF and looks_like_stream(body) and parse_json(body) is None:
        why = f"an event stream came, although streaming is off, and {why}"
    elif isinstance(data, dict) and not data.get("choices") and data.keys() & {"message", "msg", "detail"}:
        why = find_words(data, text) or why
    elif data is None and body.strip() != b"null":
        why = find_words(None, text) if text.lstrip()[:1] == "<" else "the body is not JSON, or was cut off"
        encoding = headers.get("content-encoding")
        why += f" (content-encoding: {encoding})" if encoding else ""
    is_flat_error = isinstance(data, dict) and not data.get("choices")  # {"code": 429, "message": …}
    kind_of = partial(kind_of_error, data if is_flat_error else None, why)
    message = clean_words(f"HTTP {status} without a usable answer: {why}", secret=secret)
    told = (status_of_error(data) if is_flat_error else None) or status
    return _failure(kind_of, message, why, told, headers, body, data, wall_now_s, secret)


def _failure(
    kind_of: Callable[..., FailureKind],
    message: str,
    words: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    data: Any,
    wall_now_s: float,
    secret: str | None,
) -> Failure:
    """The failure with what the headers and the body say beside its kind. `words`: the message, not yet cleaned.

    The kind may depend on whether the answer tells a wait: `kind_of(tells_a_wait=…)`.
    """
    kind = kind_of(tells_a_wait=False)
    asked_s = parse_retry_after(headers, wall_now_s=wall_now_s)
    hints = parse_rate_hints(headers, wall_now_s=wall_now_s)
    # Only of an answer that asks to come later: other messages may quote the request.
    if asked_s is None and (kind in _LATER or status in _OVERLOADED):
        hints = hints or parse_told_rate_hints(data, wall_now_s=wall_now_s)
        asked_s = parse_told_wait(data, words, headers, wall_now_s=wall_now_s)
        if asked_s is None and hints is not None and kind is FailureKind.RATE_LIMITED:
            asked_s = hints.wait_s
    if asked_s is not None:
        kind = kind_of(tells_a_wait=True)
    return Failure(
        kind=kind,
        message=message,
        http_status=status,
        request_id=_request_id(headers, data, secret),
        retry_after_s=asked_s,
        should_retry=parse_should_retry(headers),
        body=_kept_body(body, secret),
        spent=parse_spent(data),
        rate_hints=hints,
    )


def _where_it_points(headers: Mapping[str, str]) -> str:
    try:
        host = urlsplit(headers.get("location", "")).hostname
    except ValueError:
        host = None
    where = f"host {host}" if host else "another path of its own"
    return f"the endpoint redirects to {where}, and redirects are not followed: set the base URL to its API"


def _request_id(headers: Mapping[str, str], data: Any, secret: str | None) -> str | None:
    found = headers.get("x-request-id") or (data.get("request_id") if isinstance(data, dict) else None)
    if not isinstance(found, str):
        return None
    return clean_words(found, secret=secret)[:200] or None


def _kept_body(body: bytes, secret: str | None) -> bytes | None:
    if secret:
        body = body[: LONGEST_ERROR_BODY + 4096].replace(secret.encode(), b"***")
    return body[:LONGEST_ERROR_BODY] or None


def _text(body: bytes) -> str:
    return body[:LONGEST_ERROR_BODY].decode("utf-8", "replace")


def _bare_status(status: int) -> str:
    try:
        return f"HTTP {status} ({HTTPStatus(status).phrase}), and no words with it"
    except ValueError:
        return f"HTTP {status}, and no words with it"
