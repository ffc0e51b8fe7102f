"""Reads how long something lasts, as endpoints write it: `6m0s`, `20 seconds`, `1 minute and 5 seconds`. Pure."""

from __future__ import annotations

import math
import re

_UNIT_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "millisecond": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
    "d": 86_400.0,
    "day": 86_400.0,
}
_PART = (
    r"\d{1,15}(?:\.\d{1,15})?\s?"
    r"(?:milliseconds?|msecs?|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|[nuµμm]?s|[mhd])(?![a-zµμ])"
)
# Parts follow each other as in `6m0s`, `10 hours 58 minutes` and `1 minute and 5 seconds`.
DURATION = rf"{_PART}(?:(?:,\s|\sand\s|\s)?{_PART}){{0,5}}"
_WHOLE = re.compile(rf"\s*{DURATION}\s*\Z", re.IGNORECASE)
_PARTS = re.compile(r"(\d+(?:\.\d+)?)\s?([a-zµμ]+)", re.IGNORECASE)


def parse_duration(text: str) -> float | None:
    """The seconds of a duration with units; None if the text is anything else, a plain number too."""
    if _WHOLE.match(text) is None:
        return None
    return sum(float(number) * _seconds_of(unit) for number, unit in _PARTS.findall(text))


def parse_number(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _seconds_of(unit: str) -> float:
    unit = unit.lower()
    return _UNIT_S[unit] if unit in _UNIT_S else _UNIT_S[unit.removesuffix("s")]
