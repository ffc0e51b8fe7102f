"""A sliding minute that counts the calls of each key."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0
_KEYS_KEPT = 10_000


class RateWindow:
    """Admits at most `rpm` calls of one key in any 60 seconds. A refused call does not count."""

    def __init__(self) -> None:
        self._admitted: dict[bytes, deque[float]] = {}

    def admit(self, key: bytes, *, rpm: int, now: float) -> float:
        """0.0 if the call is admitted; else the seconds (> 0) until the key's next call would be admitted.

        `now`: monotonic seconds.
        """
        admitted = self._admitted.get(key)
        if admitted is None:
            if len(self._admitted) >= _KEYS_KEPT:
                self._forget_idle_keys(now)
            admitted = self._admitted[key] = deque()
        while admitted and admitted[0] <= now - WINDOW_S:
            admitted.popleft()
        if len(admitted) < rpm:
            admitted.append(now)
            return 0.0
        # This holds also after `rpm` was lowered: then as many calls must leave the window as it has too many.
        return admitted[len(admitted) - rpm] + WINDOW_S - now

    def _forget_idle_keys(self, now: float) -> None:
        idle = [key for key, times in self._admitted.items() if not times or times[-1] <= now - WINDOW_S]
        for key in idle or [next(iter(self._admitted))]:
            del self._admitted[key]
