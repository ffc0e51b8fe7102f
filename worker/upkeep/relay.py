"""The relay: keeps a bounded window of due jobs in the broker, fair across batches (invariants 8 and 9)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
from sqlalchemy import Connection

from worker.clock import Clock
from worker.errors import AntreanError, BrokerAway, tell_place
from worker.storage.batches import fetch_held
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway
from worker.storage.pauses import fetch_pause
from worker.storage.window import (
    Due,
    count_live_slots,
    count_published,
    take_due,
    take_lone_due,
    unmark_published,
    unmark_published_before,
)
from worker.throttle.gatekeeper import Gatekeeper

log = structlog.get_logger(__name__)
WINDOW_FACTOR = 2
WINDOW_FLOOR = 32
LONE_WINDOW = 64
_LOOK_FOR_EMPTY_MS = 1_000
_MISSED_AFTER_MS = 5_000  # a message that old, in an empty broker, is in some worker's hand or gone


class Epoch(Protocol):
    """A mark in the broker that is gone when the broker forgot everything."""

    def is_present(self) -> bool:
        """Whether the broker still knows us. Raises BrokerAway."""

    def set(self) -> None:
        """Leaves the mark. Raises BrokerAway."""

    def is_empty(self) -> bool:
        """Whether no message lies in any of our queues. Raises BrokerAway."""


class Relay:
    """One per worker; several may run side by side. `publish` raises BrokerAway."""

    def __init__(
        self,
        ledger: Ledger,
        publish: Callable[[Sequence[Due]], None],
        epoch: Epoch,
        gatekeeper: Gatekeeper,
        clock: Clock,
        *,
        endpoint: str,
        republish_after_s: float,
    ) -> None:
        self._ledger = ledger
        self._publish = publish
        self._epoch = epoch
        self._gatekeeper = gatekeeper
        self._clock = clock
        self._endpoint = endpoint
        self._republish_after_ms = round(republish_after_s * 1000)
        self._after_batch = ""
        self._last_republish_ms = 0
        self._last_empty_ms = 0
        self._poked = threading.Event()
        self._window = WINDOW_FLOOR
        self._taken_since_tick = 0
        self._is_paused = False
        self._may_have_lost_hints = False

    @property
    def is_paused(self) -> bool:
        """Whether somebody paused this endpoint, as of the last tick."""
        return self._is_paused

    def message_taken(self) -> None:
        """A message of the window was consumed: refill at once when half of the window is gone."""
        self._taken_since_tick += 1
        if self._taken_since_tick * 2 >= self._window:
            self._poked.set()

    def broker_lost(self) -> None:
        """The connection to the broker broke: hints on their way here may be lost. From any thread.

        All that is published and unclaimed is published again once the broker answers; claims absorb what comes
        twice.
        """
        self._may_have_lost_hints = True
        self._poked.set()

    def poke(self) -> None:
        """Looks again at once."""
        self._poked.set()

    def run(self, is_stopping: threading.Event, *, interval_s: float) -> None:
        """Ticks until told to stop; broker and database may go away and come back meanwhile.

        An error that nobody thought of is logged, and counts as a stall: the jobs wait in the ledger.
        """
        delay_s = interval_s
        while not is_stopping.is_set():
            self._poked.clear()
            try:
                self.tick()
            except AntreanError as exc:
                delay_s = min(delay_s * 2, 5.0)
                log.warning("relay.stalled", error=type(exc).__name__, retry_in_s=delay_s)
                is_stopping.wait(delay_s)
                continue
            except Exception as exc:
                delay_s = min(delay_s * 2, 5.0)
                log.error("relay.tick_failed", error=type(exc).__name__, where=tell_place(exc))
                is_stopping.wait(delay_s)
                continue
            delay_s = interval_s
            self._poked.wait(interval_s)

    def tick(self) -> int:
        """Number of jobs handed to the broker just now. Raises DatabaseAway or BrokerAway."""
        self._taken_since_tick = 0
        now_ms = self._clock.now_ms()
        self._republish_what_was_lost(now_ms)
        window, published = self._window_now()
        if window <= 0:
            return 0

        def work(connection: Connection) -> tuple[list[Due], str]:
            # A probe is one job of any kind; otherwise lone jobs have room of their own.
            lone = (
                take_lone_due(connection, self._endpoint, window=LONE_WINDOW, now_ms=now_ms)
                if window > 1
                else []
            )
            room = window - published
            due, after_batch = take_due(
                connection,
                self._endpoint,
                # A window that is nearly full can wait: a look costs the same for one job as for a hundred.
                room=room if room * 4 >= window else 0,
                after_batch=self._after_batch,
                now_ms=now_ms,
                held=fetch_held(connection, self._endpoint),
            )
            return lone + due, after_batch

        try:
            due, self._after_batch = self._ledger.run(work)
            if not due:
                return 0
            try:
                # Commit before publishing: a lost message is relayed again, a ghost is not.
                self._publish(due)
            except BrokerAway:
                self._ledger.run(lambda connection: unmark_published(connection, [job.id for job in due]))
                raise
        except DatabaseAway:
            # Nobody knows whether it was committed: jobs may be marked as published that no message names.
            self._may_have_lost_hints = True
            raise
        return len(due)

    def _window_now(self) -> tuple[int, int]:
        """How many jobs may be in the broker now, and how many are."""
        with self._ledger.read() as connection:
            published = count_published(connection, self._endpoint)
            slots = count_live_slots(connection, self._endpoint)
            self._is_paused = fetch_pause(connection, self._endpoint) is not None
        self._window = max(WINDOW_FLOOR, WINDOW_FACTOR * slots)
        return 0 if self._is_paused else self._gatekeeper.room(self._window), published

    def _republish_what_was_lost(self, now_ms: int) -> None:
        is_known = self._epoch.is_present()
        has_lost = self._may_have_lost_hints
        if not is_known or has_lost:
            self._may_have_lost_hints = False
            log.warning("relay.published_anew", broker_forgot=not is_known)
            try:
                while self._ledger.run(
                    lambda connection: unmark_published_before(connection, self._endpoint, now_ms)
                ):
                    pass
            except AntreanError:
                self._may_have_lost_hints = has_lost
                raise
            self._epoch.set()
            return
        before_ms = self._due_again_before(now_ms)
        if before_ms is not None:
            again = self._ledger.run(
                lambda connection: unmark_published_before(connection, self._endpoint, before_ms)
            )
            if again:
                log.warning("relay.published_again", jobs=again)

    def _due_again_before(self, now_ms: int) -> int | None:
        """What was published before then is to be published again; None: it is not time to look."""
        if now_ms - self._last_republish_ms >= self._republish_after_ms / 4:
            self._last_republish_ms = self._last_empty_ms = now_ms
            return now_ms - self._republish_after_ms
        if now_ms - self._last_empty_ms >= _LOOK_FOR_EMPTY_MS:
            self._last_empty_ms = now_ms
            # A purge leaves the mark. What workers have in hand is published twice by this, and claimed once.
            if self._epoch.is_empty():
                return now_ms - _MISSED_AFTER_MS
        return None
