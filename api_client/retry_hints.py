"""Reads the endpoint's headers about retries. Header names in lower case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

LONGEST_RETRY_AFTER_S = 86_400.0


def parse_retry_after(headers: Mapping[str, str], *, wall_now_s: float) -> float | None:
    """The seconds that the endpoint asks to wait, within [0, 86,400]; None if it asks for nothing, or for nonsense.

    `retry-after-ms` takes precedence over `retry-after`, which is seconds or an HTTP date. A date is compared with the
    answer's own `date`, so that only one clock counts; without one, with `wall_now_s` (Unix time).
    Dropped are a date in the past, more than a day, and a value that is negative, NaN, infinite or no number: a clock
    or a program is wrong then, and the queue must not wait for a year because of it.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        number = _number(headers.get(name))
        if number is not None and (asked_s := _sensible(number * unit_s)) is not None:
            return asked_s
    when_s = _http_date(headers.get("retry-after"))
    if when_s is None:
        return None
    answered_s = _http_date(headers.get("date"))
    return _sensible(when_s - (wall_now_s if answered_s is None else answered_s))


def parse_should_retry(headers: Mapping[str, str]) -> bool | None:
    """`x-should-retry`, or None if it is neither true nor false."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _http_date(value: str | None) -> float | None:
    try:
        when = parsedate_to_datetime(value or "")
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _sensible(seconds: float) -> float | None:
    return seconds if 0 <= seconds <= LONGEST_RETRY_AFTER_S else None
