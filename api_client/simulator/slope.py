"""A limit on how fast calls at once may rise, as some providers have it."""

from __future__ import annotations

_MEMORY_S = 5.0


class Slope:
    """Admits calls while calls at once rise by `per_s` a second at most.

    The level begins at `per_s`. It rises by `per_s` a second while it is used, and never stands more than `per_s` above
    the most calls at once of the last 5 to 10 seconds: after a longer silence it begins again. Times are monotonic
    seconds.
    """

    def __init__(self) -> None:
        self._level = 0.0
        self._at: float | None = None
        self._began = 0.0
        self._peak = self._peak_before = 0

    def admits(self, in_flight: int, *, per_s: float, now: float) -> bool:
        """Whether one more call may begin; `in_flight` counts it already."""
        elapsed_s = 0.0 if self._at is None else now - self._at
        self._at = now
        if now - self._began >= _MEMORY_S:
            self._peak_before = self._peak if now - self._began < 2 * _MEMORY_S else 0
            self._peak = 0
            self._began = now
        peak = max(self._peak, self._peak_before)
        self._level = max(per_s, min(self._level + per_s * elapsed_s, peak + per_s))
        if in_flight > max(1.0, self._level):
            return False
        self._peak = max(self._peak, in_flight)
        return True
