"""Keeps the limits that the endpoint tells in its headers in the ledger, for people."""

from __future__ import annotations

from functools import partial

from worker.clock import Clock
from worker.storage.engine import Ledger
from worker.storage.limits import LimitKind, keep_told
from worker.throttle.told import ToldLimits, What

_AGAIN_S = 3600.0  # what stays the same is said again: what nobody says any more is not shown
_KINDS: dict[What, LimitKind] = {"requests": LimitKind.REQUESTS, "tokens": LimitKind.TOKENS}


class ToldRecords:
    """One per process, called at each beat. It writes only what changed, and that once an hour."""

    def __init__(
        self, ledger: Ledger, told: ToldLimits, clock: Clock, *, endpoint: str, worker_id: str
    ) -> None:
        self._ledger = ledger
        self._told = told
        self._clock = clock
        self._endpoint = endpoint
        self._worker_id = worker_id
        self._kept: dict[tuple[str, What], tuple[int | None, float]] = {}

    def keep(self) -> None:
        """Raises DatabaseAway."""
        now_s = self._clock.monotonic_s()
        for place, value in self._told.known().items():
            kept, kept_s = self._kept.get(place, (None, now_s))
            if kept == value and (value is None or now_s - kept_s < _AGAIN_S):
                continue
            key_id, what = place
            self._ledger.run(
                partial(
                    keep_told,
                    endpoint=self._endpoint,
                    key_id=key_id,
                    kind=_KINDS[what],
                    value=value,
                    worker_id=self._worker_id,
                    now_ms=self._clock.now_ms(),
                )
            )
            self._kept[place] = (value, now_s)
