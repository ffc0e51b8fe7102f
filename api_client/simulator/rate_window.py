"""A sliding window that counts what each key used: calls, or tokens."""

from __future__ import annotations

import math
from collections import deque

WINDOW_S = 60.0
_KEYS_KEPT = 10_000


class _Used:
    """What one key used: moments and amounts, the oldest first, and their sum."""

    __slots__ = ("entries", "total")

    def __init__(self) -> None:
        self.entries: deque[tuple[float, int]] = deque()
        self.total = 0

    def forget(self, until: float) -> None:
        while self.entries and self.entries[0][0] <= until:
            self.total -= self.entries.popleft()[1]


class RateWindow:
    """Admits at most `limit` units of one key in any window. What was refused does not count.

    Times are monotonic seconds.
    """

    def __init__(self) -> None:
        self._keys: dict[bytes, _Used] = {}

    def admit(
        self, key: bytes, *, limit: int, now: float, amount: int = 1, window_s: float = WINDOW_S
    ) -> float:
        """0.0 if it is admitted; else the seconds (> 0) until the same would be; inf if it never will."""
        used = self._keys.get(key)
        if used is None:
            if len(self._keys) >= _KEYS_KEPT:
                self._forget_idle_keys(now - window_s)
            used = self._keys[key] = _Used()
        used.forget(now - window_s)
        excess = used.total + amount - limit
        if excess <= 0:
            used.entries.append((now, amount))
            used.total += amount
            return 0.0
        # This holds also after the limit was lowered: then as much must leave the window as there is too much.
        for at, left in used.entries:
            excess -= left
            if excess <= 0:
                return at + window_s - now
        return math.inf

    def used(self, key: bytes, *, now: float, window_s: float = WINDOW_S) -> tuple[int, float]:
        """What the key used in the window that ends now, and the seconds until all of it has left the window."""
        used = self._keys.get(key)
        if used is None:
            return 0, 0.0
        used.forget(now - window_s)
        return used.total, used.entries[-1][0] + window_s - now if used.entries else 0.0

    def _forget_idle_keys(self, until: float) -> None:
        idle = [key for key, used in self._keys.items() if not used.entries or used.entries[-1][0] <= until]
        for key in idle or [next(iter(self._keys))]:
            del self._keys[key]
