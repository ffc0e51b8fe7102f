"""A clock that moves only when a test says so."""

from __future__ import annotations


class FakeClock:
    """Wall and monotonic time, moved by hand."""

    def __init__(self, now_ms: int = 1_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic_s = 500.0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def jump(self, seconds: float) -> None:
        """The wall clock is set by `seconds`; no time passes."""
        self._now_ms += round(seconds * 1000)

    def advance(self, seconds: float) -> None:
        """Both clocks go on by `seconds`."""
        self._now_ms += round(seconds * 1000)
        self._monotonic_s += seconds
