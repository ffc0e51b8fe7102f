"""Draining: a worker that ends when nothing is left to do for its endpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from worker.clock import Clock
from worker.errors import AntreanError
from worker.storage.engine import Ledger
from worker.storage.pauses import fetch_pause
from worker.storage.work_left import HELD_ADVICE, count_failed_since, count_held, has_work

log = structlog.get_logger(__name__)
_LOOK_EVERY_S = 0.5
_MOST_NAMED = 5
_QUIET_LOOKS = 2  # in the first of them, a message may be on its way from the broker to Celery


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain ended: the jobs that failed meanwhile, and those of stopped runs or at their budget that are left."""

    failed: int
    held: Mapping[str, int]  # by the id of the run's batch

    def tell(self) -> None:
        """Logs it; what is left with the reason, and what to do about it."""
        if self.held:
            log.warning(
                "worker.left_held_jobs",
                jobs=sum(self.held.values()),
                batches=", ".join(list(self.held)[:_MOST_NAMED]),
                why="their run was stopped, or their batch is at its budget",
                advice=f"{HELD_ADVICE}, `antrean budget BATCH AMOUNT` raises a budget",
            )
        log.info("worker.drained", failed_jobs=self.failed)


class Drain:
    """Looks until nothing is left: no message in the broker, none in hand, and no job in the ledger.

    In this order, which is the way of a message: what moves on between two questions is met at the next one. Where the
    broker or the database does not answer, nobody knows, and the worker stays.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        *,
        endpoint: str,
        has_messages: Callable[[], bool],
        is_busy: Callable[[], bool],
        look_every_s: float = _LOOK_EVERY_S,
    ) -> None:
        """`has_messages`: whether some lie in the broker, which may raise BrokerAway; `is_busy`: whether this process
        has some in hand."""
        self._ledger = ledger
        self._endpoint = endpoint
        self._has_messages = has_messages
        self._is_busy = is_busy
        self._look_every_s = look_every_s
        self._clock = clock
        self._began_at_ms = clock.now_ms()
        self._is_pause_told = False

    def run(self, is_stopping: threading.Event) -> Drained | None:
        """What came of it once nothing is left; None when the worker stops before that."""
        quiet_looks = 0
        while not is_stopping.wait(self._look_every_s):
            try:
                quiet_looks = 0 if self._is_work_left() else quiet_looks + 1
                if quiet_looks >= _QUIET_LOOKS:
                    with self._ledger.read() as connection:
                        return Drained(
                            count_failed_since(connection, self._endpoint, since_ms=self._began_at_ms),
                            count_held(connection, self._endpoint),
                        )
            except AntreanError as exc:
                quiet_looks = 0
                log.warning("drain.cannot_look", error=type(exc).__name__)
        return None

    def _is_work_left(self) -> bool:
        if self._has_messages() or self._is_busy():
            return True
        with self._ledger.read() as connection:
            is_left = has_work(connection, self._endpoint)
            is_paused = is_left and fetch_pause(connection, self._endpoint) is not None
        if is_paused and not self._is_pause_told:
            log.warning("drain.waits_for_resume", endpoint=self._endpoint)
        self._is_pause_told = is_paused
        return is_left
