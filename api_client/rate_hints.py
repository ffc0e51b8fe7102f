"""Reads the headers about rate limits, such as `x-ratelimit-remaining-requests`. Header names in lower case. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from api_client.durations import parse_duration, parse_number
from api_client.retry_hints import LONGEST_RETRY_AFTER_S, answered_at, parse_http_date
from schemas.rates import Allowance, RateHints

_MOST_HEADERS = 40
_UNLIMITED = 10**12
_EPOCH_S = 1e9  # larger numbers are points in time: seconds, or milliseconds from 1e11 on
_EPOCH_MS = 1e11
_PREFIX = re.compile(r"(?:x-|anthropic-)?rate-?limit-")
_FIELDS = frozenset({"limit", "remaining", "reset"})
_REQUESTS = frozenset({"requests", "request", "req", "reqs"})
_TOKENS = frozenset({"tokens", "token", "tok"})
_WINDOWS = frozenset({"second", "minute", "hour", "day", "month", "project"})
_MEANINGLESS = frozenset({"after", "time", "at"})  # as in `x-ratelimit-reset-after`
_Place = tuple[str, str, str]  # requests or tokens; the window; limit, remaining or reset


def parse_rate_hints(headers: Mapping[str, str], *, wall_now_s: float) -> RateHints | None:
    """What the headers say of limits; None if they say nothing of them.

    A count is a whole number: a negative one, "unlimited" and nonsense are unknown. A reset is a duration (`6m0s`,
    `12ms`), seconds, or a point in time: Unix time in s or ms, ISO 8601 or an HTTP date, which is compared with the
    answer's own `date`. One that is over, or more than a day away, is unknown.
    """
    found = [(name, value) for name, value in headers.items() if "limit-" in name]
    if not found:
        return None
    windows: dict[tuple[str, str], dict[str, str]] = {}
    for name, value in found[:_MOST_HEADERS]:
        place = _find_place(name)
        if place is not None:
            windows.setdefault(place[:2], {})[place[2]] = value
    if not windows:
        return None
    answered_s = answered_at(headers, wall_now_s=wall_now_s)
    tightest: dict[str, Allowance] = {}
    per_minute: dict[str, int] = {}
    for (what, window), values in windows.items():
        allowance = _parse_allowance(values, answered_s)
        if window == "minute" and allowance.limit is not None:
            per_minute[what] = allowance.limit
        if what not in tightest or _tightness(allowance) < _tightness(tightest[what]):
            tightest[what] = allowance
    return RateHints(
        **tightest,
        requests_per_minute=per_minute.get("requests"),
        tokens_per_minute=per_minute.get("tokens"),
    )


def parse_told_rate_hints(data: Any, *, wall_now_s: float) -> RateHints | None:
    """The same of the headers that a body quotes in `error.metadata.headers`; None if there are none."""
    inner = data
    for name in ("error", "metadata", "headers"):
        inner = inner.get(name) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        return None
    headers = {
        str(name).lower(): str(value)[:80]
        for name, value in list(inner.items())[:_MOST_HEADERS]
        if isinstance(value, (str, int, float))
    }
    return parse_rate_hints(headers, wall_now_s=wall_now_s)


@lru_cache(maxsize=256)
def _find_place(name: str) -> _Place | None:
    """What a header of this name tells; None if it is of another kind of limit."""
    prefix = _PREFIX.match(name)
    if prefix is None:
        return None
    parts = re.split(r"[-_]", name[prefix.end() :])
    fields = [part for part in parts if part in _FIELDS]
    others = [part for part in parts if part not in _FIELDS and part not in _MEANINGLESS]
    what = "tokens" if _TOKENS & set(others) else "requests"
    window = [part for part in others if part not in _TOKENS and part not in _REQUESTS]
    if len(fields) != 1 or (
        window and not (_TOKENS | _REQUESTS) & set(others) and not set(window) <= _WINDOWS
    ):
        return None  # such as `x-ratelimit-limit-images`
    return what, " ".join(window), fields[0]


def _parse_allowance(values: dict[str, str], answered_s: float) -> Allowance:
    limit = _parse_count(values.get("limit"))
    if limit == 0:  # a call was answered: there is no such limit
        return Allowance()
    return Allowance(
        limit, _parse_count(values.get("remaining")), _parse_reset(values.get("reset"), answered_s)
    )


def _parse_count(value: str | None) -> int | None:
    if value is None:
        return None
    number = parse_number(value.partition(",")[0].partition(";")[0])
    return int(number) if number is not None and 0 <= number < _UNLIMITED else None


def _parse_reset(value: str | None, answered_s: float) -> float | None:
    if value is None:
        return None
    number = parse_number(value)
    if number is None:
        seconds = parse_duration(value)
        if seconds is None and (when_s := _parse_date(value)) is not None:
            seconds = when_s - answered_s
    elif number >= _EPOCH_S:
        seconds = (number / 1000 if number >= _EPOCH_MS else number) - answered_s
    else:
        seconds = number
    return seconds if seconds is not None and 0 <= seconds <= LONGEST_RETRY_AFTER_S else None


def _parse_date(value: str) -> float | None:
    try:
        when = datetime.fromisoformat(value.strip())
    except ValueError:
        return parse_http_date(value)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _tightness(allowance: Allowance) -> tuple[float, float]:
    """Less is tighter: first the one that makes wait the longest, then the one that leaves the least."""
    left = float("inf") if allowance.remaining is None else float(allowance.remaining)
    return -(allowance.wait_s or 0.0), left
