"""Time as an argument: the wall clock for what is stored, a monotonic clock for what is waited for."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now_ms(self) -> int:
        """UTC wall time, milliseconds since the epoch: what rows store."""

    def monotonic_s(self) -> float:
        """Seconds that never run backwards: leases and deadlines."""


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


def describe_until(until_ms: int, now_ms: int) -> str:
    """`until 14:03:20, in 45 s`, by this machine's clock and time zone; `until 14:03:20, which is over`."""
    if until_ms <= now_ms:
        return f"until {_local_time(until_ms, now_ms)}, which is over"
    return f"until {describe_moment(until_ms, now_ms).removeprefix('at ')}"


def describe_since(at_ms: int, now_ms: int) -> str:
    """`since 14:02:35`, by this machine's clock and time zone."""
    return f"since {_local_time(min(at_ms, now_ms), now_ms)}"


def describe_moment(at_ms: int, now_ms: int) -> str:
    """`at 14:03:20, in 45 s`, by this machine's clock and time zone; `now` where it has come."""
    if at_ms <= now_ms:
        return "now"
    return f"at {_local_time(at_ms, now_ms)}, in {-(-(at_ms - now_ms) // 1000):,} s"


def _local_time(at_ms: int, now_ms: int) -> str:
    at = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone()
    day = "" if abs(at_ms - now_ms) < 12 * 3_600_000 else f"{at:%Y-%m-%d} "
    return f"{day}{at:%H:%M:%S}"


def iso_ms(at_ms: int) -> str:
    """UTC, to the millisecond, as ISO 8601."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
