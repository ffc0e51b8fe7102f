"""What the endpoint's headers say about trying again. Header names in lower case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

LONGEST_RETRY_AFTER_S = 86_400.0


def parse_retry_after(headers: Mapping[str, str], *, wall_now_s: float) -> float | None:
    """Seconds the endpoint asks to wait, within [0, a day]; None where it says nothing usable.

    `retry-after-ms` wins over `retry-after`: seconds, or an HTTP date against `wall_now_s` (Unix time).
    A date in the past is 0. Negative, NaN, infinite and garbage are None.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None:
        return _bounded(seconds)
    when_s = _http_date(value)
    return None if when_s is None else _bounded(max(0.0, when_s - wall_now_s))


def parse_should_retry(headers: Mapping[str, str]) -> bool | None:
    """`x-should-retry`, or None where it is neither true nor false."""
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


def _bounded(seconds: float) -> float | None:
    return min(seconds, LONGEST_RETRY_AFTER_S) if seconds >= 0 else None
