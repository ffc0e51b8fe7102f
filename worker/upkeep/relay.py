"""The relay: keeps a bounded window of due jobs in the broker, fair across batches (invariants 8 and 9)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

import structlog

from schemas.job import Due
from worker.clock import Clock
from worker.errors import AntreanError, BrokerAway, tell_place
from worker.policy.fairness import Account
from worker.policy.gates import PROBE_EVERY_S, Admission
from worker.policy.half_open import AT_ONCE
from worker.storage.batches import fetch_held
from worker.storage.clock_skew import cap_waits
from worker.storage.due import (
    START,
    count_live_slots,
    count_published,
    fetch_mark_bound,
    fetch_marked_among,
    fetch_marked_before,
    renew_marks,
    take_due,
    take_lone_due,
    unmark_published,
    unmark_published_before,
)
from worker.storage.engine import Ledger, Transaction
from worker.storage.errors import DatabaseAway
from worker.storage.gate_waits import SPREAD_MS, has_open_jobs, take_probes, wake_blocked
from worker.storage.pauses import fetch_pause
from worker.storage.tables import MAX_ROWS
from worker.upkeep.batch_facts import BatchFacts
from worker.upkeep.relay_needs import Epoch, Gates, Spread

log = structlog.get_logger(__name__)
WINDOW_FACTOR = 2
WINDOW_FLOOR = 32
LONE_WINDOW = 64
_LOOK_FOR_EMPTY_S = 1.0
_LOOK_FOR_LONG_WAITS_S = 5.0
_MOST_PROBE_HINTS = 4
_MISSED_AFTER_MS = 5_000  # a mark that old is of a message that nobody has in hand
_RENEW_AFTER_MS = 2_000  # whoever has a message in hand lets its mark grow no older than about this
_EMPTY_FOR_S = 3.0  # by then, who took the last message has renewed its mark, however old that was


class Relay:
    """One per worker; several may run side by side. `publish` raises BrokerAway."""

    def __init__(
        self,
        ledger: Ledger,
        publish: Callable[[Sequence[Due]], None],
        epoch: Epoch,
        gates: Gates,
        clock: Clock,
        *,
        endpoint: str,
        republish_after_s: float,
        in_hand: Callable[[], Collection[str]] = tuple,
        backoff_cap_s: float = 120.0,
        longest_wait_s: float = 3720.0,
        may_probe: Callable[[], bool] = lambda: True,
        spread: Spread | None = None,
        facts: BatchFacts | None = None,
    ) -> None:
        """`in_hand`: the jobs whose hints this process has fetched and not finished.

        `may_probe`: whether a job may test a shut gate now, or the endpoint is asked by other means first.

        `spread`: where jobs go to several endpoints; it is the `gates`, too, and lets jobs test those that are shut.

        `longest_wait_s`: no retry of ours waits longer; `backoff_cap_s`: nor one that nobody asked to wait.

        `facts`: what is known of batches; told by others what their answers took.
        """
        self._ledger = ledger
        self._publish = publish
        self._epoch = epoch
        self._in_hand = in_hand
        self._may_probe = may_probe
        self._spread = spread
        self._gates = gates
        self._clock = clock
        self._endpoint = endpoint
        self._republish_after_ms = round(republish_after_s * 1000)
        self._usual_wait_ms = round(backoff_cap_s * 1000)
        self._longest_wait_ms = round(max(backoff_cap_s, longest_wait_s) * 1000)
        self._facts = facts or BatchFacts(clock, endpoint=endpoint)
        # Each relay has its own: where all of them are fair, so is their sum.
        self._account = START
        # Monotonic, as all that is done once in a while: a wall clock that is set back must not put it off.
        self._republished_at_s = float("-inf")
        self._looked_for_empty_at_s = float("-inf")
        self._empty_since_s = float("inf")
        self._capped_at_s = float("-inf")
        self._poked = threading.Event()
        self._window = WINDOW_FLOOR
        self._taken_since_tick = 0
        self._is_paused = False
        self._may_have_lost_hints = False
        self._openings = gates.openings
        self._probe_hinted_s = float("-inf")

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
        self._cap_waits(now_ms)
        window, published = self._window_now()
        self._wake_those_who_wait(now_ms)
        if window <= 0:
            return 0
        if self._spread is not None:
            take = partial(
                self._spread.take,
                window=self._window,
                account=self._account,
                now_ms=now_ms,
                describe=self._facts.describe,
            )
            return self._hand_over(take)
        if window <= AT_ONCE:
            return self._hint_probes(window, published, now_ms)

        def work(connection: Transaction) -> tuple[list[Due], Account]:
            # Lone jobs have room of their own.
            held = fetch_held(connection, self._endpoint)
            lone = take_lone_due(connection, self._endpoint, window=LONE_WINDOW, now_ms=now_ms, held=held)
            room = window - published
            due, account = take_due(
                connection,
                self._endpoint,
                # A window that is nearly full can wait: a look costs the same for one job as for a hundred.
                room=room if room * 4 >= window else 0,
                account=self._account,
                now_ms=now_ms,
                held=held,
                describe=self._facts.describe,
            )
            return lone + due, account

        return self._hand_over(work)

    def _hand_over(self, take: Callable[[Transaction], tuple[list[Due], Account]]) -> int:
        """Marks what `take` chooses and publishes it; the number of jobs."""
        try:
            due, account = self._ledger.run(take)
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
        self._account = account
        return len(due)

    def _hint_probes(self, room: int, published: int, now_ms: int) -> int:
        """Publishes `room` jobs that try the shut gate; another one if they went to a worker whose slots all hang."""
        now_s = self._clock.monotonic_s()
        is_late = now_s - self._probe_hinted_s >= PROBE_EVERY_S
        if published >= room and (published >= _MOST_PROBE_HINTS or not is_late):
            return 0
        with self._ledger.read() as connection:
            if not has_open_jobs(connection, self._endpoint):
                return 0  # nobody waits: the endpoint is left alone
        if not self._may_probe():
            return 0
        admission, refused = self._gates.admission()

        def take(connection: Transaction) -> tuple[list[Due], Account]:
            due, after = take_probes(
                connection,
                self._endpoint,
                at_most=max(1, room - published),
                after_batch=self._account.after,
                now_ms=now_ms,
                held=fetch_held(connection, self._endpoint),
                refused=refused,
                is_for_others=admission is Admission.PROBE_OF_OTHERS,
            )
            return due, replace(self._account, after=after)

        handed = self._hand_over(take)
        if handed:
            self._probe_hinted_s = now_s
        return handed

    def _wake_those_who_wait(self, now_ms: int) -> None:
        """Brings forward the jobs that wait at a gate which has opened."""
        openings = self._gates.openings
        if openings == self._openings:
            return
        woken, step = 0, MAX_ROWS
        while step == MAX_ROWS:
            due_ms = now_ms + woken // MAX_ROWS * SPREAD_MS
            step = self._ledger.run(partial(wake_blocked, endpoint=self._endpoint, now_ms=due_ms))
            woken += step
        self._openings = openings
        if woken:
            log.info("relay.woken", jobs=woken)

    def _window_now(self) -> tuple[int, int]:
        """How many jobs may be in the broker now, and how many are."""
        with self._ledger.read() as connection:
            # What is in the broker of a run that is held stays there unclaimed: it must not keep the others out.
            held = fetch_held(connection, self._endpoint)
            published = count_published(connection, self._endpoint, held=held)
            slots = count_live_slots(connection, self._endpoint)
            self._is_paused = fetch_pause(connection, self._endpoint) is not None
        self._window = max(WINDOW_FLOOR, WINDOW_FACTOR * slots)
        return 0 if self._is_paused else self._gates.room(self._window), published

    def _republish_what_was_lost(self, now_ms: int) -> None:
        is_known = self._epoch.is_present()
        has_lost = self._may_have_lost_hints
        if not is_known or has_lost:
            self._may_have_lost_hints = False
            try:
                jobs = self._unmark_all(now_ms)
            except AntreanError:
                self._may_have_lost_hints = has_lost
                raise
            self._epoch.set()
            if jobs:  # a new broker of a ledger that was idle has lost nothing
                log.warning("relay.published_anew", jobs=jobs, broker_forgot=not is_known)
            return
        age_ms = self._age_of_the_lost(now_ms)
        if age_ms is None:
            return
        # As far ahead as behind: a mark in the future was made by a clock that was ahead.
        again = self._ledger.run(
            partial(
                unmark_published_before,
                endpoint=self._endpoint,
                before_ms=now_ms - age_ms,
                after_ms=now_ms + age_ms,
            )
        )
        if again:
            log.warning("relay.published_again", jobs=again)

    def _unmark_all(self, now_ms: int) -> int:
        with self._ledger.read() as connection:
            before_ms = fetch_mark_bound(connection, self._endpoint, now_ms=now_ms)
        unmark = partial(unmark_published_before, endpoint=self._endpoint, before_ms=before_ms)
        jobs = 0
        while some := self._ledger.run(unmark):
            jobs += some
        return jobs

    def _age_of_the_lost(self, now_ms: int) -> int | None:
        """How old a mark is, in milliseconds, whose message is to be published again; None: it is not time to look.

        Calls may take minutes, and whatever waits for their slots is not lost. So a mark says when its message was last
        seen: by the worker that has it in hand, or by a relay that saw it lie in the broker.
        """
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_for_empty_at_s < _LOOK_FOR_EMPTY_S:
            return None
        self._looked_for_empty_at_s = now_s
        self._renew_marks_in_hand(now_ms)
        if now_s - self._republished_at_s >= self._republish_after_ms / 4000:
            self._republished_at_s = now_s
            self._renew_marks_in_broker(now_ms)
            return self._republish_after_ms
        if not self._epoch.is_empty():
            self._empty_since_s = float("inf")
            return None
        self._empty_since_s = min(self._empty_since_s, now_s)
        # A purge leaves the mark.
        return _MISSED_AFTER_MS if now_s - self._empty_since_s >= _EMPTY_FOR_S else None

    def _renew_marks_in_hand(self, now_ms: int) -> None:
        ids = self._in_hand()
        if not ids:
            return
        with self._ledger.read() as connection:
            age_ms = min(_RENEW_AFTER_MS, self._republish_after_ms // 2)
            old = fetch_marked_among(connection, ids, before_ms=now_ms - age_ms)
        if old:
            self._ledger.run(partial(renew_marks, ids=old, now_ms=now_ms))

    def _renew_marks_in_broker(self, now_ms: int) -> None:
        lying: frozenset[str] | None = None
        while True:
            with self._ledger.read() as connection:
                old = fetch_marked_before(
                    connection, self._endpoint, before_ms=now_ms - self._republish_after_ms // 2
                )
            if not old:
                return
            if lying is None:
                lying = self._epoch.fetch_lying_jobs(self._window + LONE_WINDOW)
            seen = [job_id for job_id in old if job_id in lying]
            if seen:
                self._ledger.run(partial(renew_marks, ids=seen, now_ms=now_ms))
            if not seen or len(old) < MAX_ROWS:
                return

    def _cap_waits(self, now_ms: int) -> None:
        """Lets no retry wait for a clock that was ahead."""
        now_s = self._clock.monotonic_s()
        if now_s - self._capped_at_s < _LOOK_FOR_LONG_WAITS_S:
            return
        self._capped_at_s = now_s
        cap = partial(
            cap_waits,
            endpoint=self._endpoint,
            now_ms=now_ms,
            usual_ms=self._usual_wait_ms,
            longest_ms=self._longest_wait_ms,
        )
        has_more = True
        while has_more:
            capped, has_more = self._ledger.run(cap)
            if capped:
                log.warning("relay.waits_measured_anew", jobs=capped)
