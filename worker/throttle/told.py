"""The limits of a minute that a process's answers tell in their headers, by key."""

from __future__ import annotations

import threading
from typing import Literal

from schemas.rates import RateHints
from worker.policy.told_limits import Told, note_told

What = Literal["requests", "tokens"]
_MOST = 64  # limits, so keys by two: those of a file that changes often are forgotten


class ToldLimits:
    """One per process. Thread-safe. Costs nothing where answers tell no limits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[tuple[str, What], Told] = {}

    def note(self, hints: RateHints | None, key_id: str, *, now_ms: int) -> None:
        """One more answer to a call with this key."""
        if hints is None:
            return
        with self._lock:
            for what, allowance, named in (
                ("requests", hints.requests, hints.requests_per_minute),
                ("tokens", hints.tokens, hints.tokens_per_minute),
            ):
                place: tuple[str, What] = (key_id, what)  # type: ignore[assignment]
                told = note_told(self._told.get(place), allowance, named=named, now_ms=now_ms)
                if told is not None:
                    self._told[place] = told
            while len(self._told) > _MOST:
                del self._told[next(iter(self._told))]

    def known(self) -> dict[tuple[str, What], int | None]:
        """Requests and tokens a minute by key id; None where what is told is not known to be of a minute."""
        with self._lock:
            return {place: told.per_minute for place, told in self._told.items()}
