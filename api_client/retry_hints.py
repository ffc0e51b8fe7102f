"""Reads how long the endpoint asks to wait: its headers, else its body's own words. Header names in lower case."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from api_client.durations import DURATION, parse_duration, parse_number

LONGEST_RETRY_AFTER_S = 86_400.0
_LONGEST_WORDS = 4000
_MOST_VALUES = 200
_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")
# The names of fields, in lower case and without punctuation, and their unit where the value is a number.
_FIELDS = {
    "retryafter": 1.0,
    "retryafters": 1.0,
    "retryaftersec": 1.0,
    "retryaftersecs": 1.0,
    "retryafterseconds": 1.0,
    "retryafterms": 0.001,
    "retryaftermilliseconds": 0.001,
    "retrydelay": 1.0,
    "retrydelayseconds": 1.0,
    "retrydelayms": 0.001,
}
_AGAIN = re.compile(
    r"\b(?:(?:try|trying|retry|retrying|available)(?:\s+(?:your|the|this)\s+request)?(?:\s+again)?\s+(?:in|after)"
    rf"|wait(?:ing)?(?:\s+for)?)(?:\s+(?:about|approximately|at\s+least|another))?:?\s+({DURATION})",
    re.IGNORECASE,
)
_RESETS_AT = re.compile(
    r"\bresets?\s+at:?\s+(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.\d+)?\s?(?:UTC|Z|\+00:00)", re.IGNORECASE
)


def parse_retry_after(headers: Mapping[str, str], *, wall_now_s: float) -> float | None:
    """The seconds that the headers ask to wait, within [0, 86,400]; None if they ask for nothing, or for nonsense.

    `retry-after-ms` takes precedence over `retry-after`, which is seconds or an HTTP date. A date is compared with the
    answer's own `date`, so that only one clock counts; without one, with `wall_now_s` (Unix time).
    Dropped are a date in the past, more than a day, and a value that is negative, NaN, infinite or no number: a clock
    or a program is wrong then, and the queue must not wait for a year because of it.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        number = parse_number(headers.get(name))
        if number is not None and (asked_s := _sensible(number * unit_s)) is not None:
            return asked_s
    when_s = parse_http_date(headers.get("retry-after"))
    if when_s is None:
        return None
    return _sensible(when_s - answered_at(headers, wall_now_s=wall_now_s))


def parse_told_wait(data: Any, words: str, headers: Mapping[str, str], *, wall_now_s: float) -> float | None:
    """The seconds that a refusal's body asks to wait, within (0, 86,400]; None if it asks for nothing, or for nonsense.

    `data`: the decoded JSON, or None; its fields such as `retry_after` and `retryDelay` count first. `words`: the
    message, of which "try again in 6m0s", "retry after 20 seconds" and the like count. The longest wait counts.
    """
    if data is not None and (waits := [wait for wait in _waits_in_fields(data) if wait]):
        return max(waits)
    words = words[:_LONGEST_WORDS]
    told = [_sensible(parse_duration(found) or 0.0) for found in _AGAIN.findall(words)]
    for day, time in _RESETS_AT.findall(words):
        try:
            at_s = datetime.fromisoformat(f"{day}T{time}+00:00").timestamp()
        except ValueError:
            continue
        told.append(_sensible(at_s - answered_at(headers, wall_now_s=wall_now_s)))
    return max((wait for wait in told if wait), default=None)


def parse_should_retry(headers: Mapping[str, str]) -> bool | None:
    """`x-should-retry`, or None if it is neither true nor false."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def answered_at(headers: Mapping[str, str], *, wall_now_s: float) -> float:
    """The answer's own `date` (Unix time), else `wall_now_s`. Points in time of the answer are compared with it."""
    answered_s = parse_http_date(headers.get("date"))
    return wall_now_s if answered_s is None else answered_s


def parse_http_date(value: str | None) -> float | None:
    """The Unix time of an HTTP date; None if it is none."""
    try:
        when = parsedate_to_datetime(value or "")
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _waits_in_fields(data: Any) -> Iterator[float | None]:
    """The waits in the known fields of the body, in its objects and lists, to a depth of 6."""
    left, seen = [(data, 0)], 0
    while left and seen < _MOST_VALUES:
        value, depth = left.pop()
        seen += 1
        if isinstance(value, list):
            left += [(one, depth + 1) for one in value[:10]] if depth < 6 else []
        elif isinstance(value, dict):
            for name, inner in value.items():
                if isinstance(inner, (dict, list)):
                    left += [(inner, depth + 1)] if depth < 6 else []
                elif (unit_s := _FIELDS.get(_NOT_ALPHANUMERIC.sub("", str(name).lower()))) is not None:
                    yield _field(inner, unit_s)


def _field(value: Any, unit_s: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    number = parse_number(str(value)[:40])
    if number is not None:
        return _sensible(number * unit_s)
    return _sensible(parse_duration(str(value)[:80]) or 0.0)


def _sensible(seconds: float) -> float | None:
    return seconds if 0 <= seconds <= LONGEST_RETRY_AFTER_S else None
