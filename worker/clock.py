"""Time as an argument: the wall clock for what is stored, a monotonic clock for what is waited for."""

from __future__ import annotations

import time
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
