"""The limiter of a worker: asks the store for its share of the endpoint's limits, applies it, and adapts the limit.

Any worker may adapt it: it decides from what all of them saw, and its change counts if nobody was faster. With a number
as concurrency and no limits set, the store is not asked at all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import structlog

from worker.clock import Clock
from worker.errors import tell_place
from worker.policy.concurrency import Limit, Phase, allow_more, cut, reopen, start, step, wake
from worker.policy.flow import Flow
from worker.throttle.limiter_needs import Known, LimitRecords, SlotUse
from worker.throttle.limits import SILENT_MS, Change, Fixed, LimitStore, Report, Share, StoreAway
from worker.throttle.meter import Meter, Reading

log = structlog.get_logger(__name__)
_BUSY_S = 0.1
_STEADY_S = 0.25  # where nothing changed lately
_IDLE_S = 1.0
SHORTEST_S = 0.03
_SETTINGS_EVERY_S = 0.5
_REMEMBER_EVERY_S = 60.0  # what the found limit knows, where its value stays
_NOTE_SLOTS_EVERY_S = 0.5
_VALID_S = SILENT_MS / 1000 - 3.0  # a worker that was suspended for longer may have lost its share
_REOPENED_MS = 2000  # gates of several workers open at the same time, and cause one slow start
_MOST_CHANGES = 4  # in one turn


class Limiter:
    """One per worker process; `run` in a thread of its own."""

    def __init__(
        self,
        store: LimitStore,
        records: LimitRecords,
        slots: SlotUse,
        meter: Meter,
        clock: Clock,
        *,
        worker_id: str,
        own_limit: int,
        first_limit: int,
        is_adaptive: bool,
        apply: Callable[[int], None],
        advance: Callable[[], None],
        openings: Callable[[], int],
        poked: threading.Event | None = None,
        count_slots: Callable[[], int] | None = None,
    ) -> None:
        """`own_limit`: the most calls of this worker; with `is_adaptive` also the most that is tried over all workers.

        `first_limit`: those that the slots allow by now. `apply` makes a number of slots the limit of this worker;
        `advance` begins what may begin. `openings` counts the gates that have opened. `poked` is set for an exchange at
        once. `count_slots`: what is noted as this worker's slots; None: its share.
        """
        self._store = store
        self._records = records
        self._slots = slots
        self._meter = meter
        self._clock = clock
        self._worker_id = worker_id
        self._own_limit = own_limit
        self._is_adaptive = is_adaptive
        self._is_by_key = False  # each key has a found limit, and this is the limiter of all keys together
        self._apply = apply
        self._advance = advance
        self._openings = openings
        self._poked = poked or threading.Event()
        self._count_slots = count_slots
        meter.on_refusal = self._hold
        self._known = Known()
        self._known_s = float("-inf")
        self._limit: Limit | None = None
        self._latest: Limit | None = None  # also where the store has forgotten it
        self._applied = first_limit
        self._is_limited = False  # the store may know of this worker
        self._has_begun = False  # before, no call can have begun
        self._reported_s = 0.0
        self._was_full = self._is_rate_reached = self._is_rate_far = False
        self._was_open = 0
        self._had_demand = self._has_woken = False
        self._is_held = False  # no call begins before the next exchange
        self._refused_epoch: int | None = None
        self._dead: deque[str] = deque()
        self._opened = openings()
        self._reopened_ms = -_REOPENED_MS  # the latest slow start after a gate, of any worker
        self._allowed: int | None = None  # the set limit of calls in flight, as it was
        self._is_away = False
        self._remembered: Limit | None = None
        self._remembered_s = float("-inf")
        self._noted: int | None = None
        self._noted_s = float("-inf")
        self._kept: Reading | None = None  # of a report that did not arrive

    def poke(self) -> None:
        """Has the next exchange made at once. From any thread."""
        self._poked.set()

    def _hold(self) -> None:
        """A call was refused, and no other begins until all workers know: some milliseconds."""
        self._is_held = True
        self._slots.valid_until_s = 0.0
        self._poked.set()

    def forget(self, worker_id: str) -> None:
        """A worker has died: its share is the others'. From any thread."""
        self._dead.append(worker_id)

    def run(self, is_leaving: threading.Event) -> None:
        """Exchanges until no call is left at the end, and then gives the share up. `poke` when `is_leaving` is set."""
        while not is_leaving.is_set():
            self._poked.clear()
            delay_s = self.turn()
            is_leaving.wait(SHORTEST_S)
            self._poked.wait(max(0.0, delay_s - SHORTEST_S))
        self.end()

    def turn(self) -> float:
        """As `tick`. After an error that nobody thought of, the last share stays, and it tries again a second later."""
        try:
            return self.tick()
        except Exception as exc:
            self._tell_failure(exc)
            self._confirm()
            return _IDLE_S

    def end(self) -> None:
        """Gives the share up, and keeps what was found."""
        try:
            if self._is_limited:
                with suppress(StoreAway):  # then its share ends by itself
                    self._store.leave(self._worker_id)
            if self._limit is not None:
                self._remember(self._limit)
        except Exception as exc:  # nobody needs this thread any more: the worker ends in order
            self._tell_failure(exc)

    def _tell_failure(self, exc: Exception) -> None:
        log.error("limit.failed", error=type(exc).__name__, where=tell_place(exc), share=self._applied)

    def find_by_key(self, is_by_key: bool) -> None:
        """Whether each key has a found limit now: what is set, and the most that is tried, is then shared here."""
        self._is_by_key, self._is_adaptive = is_by_key, not is_by_key

    def tick(self) -> float:
        """One exchange, if there is a limit to share. Seconds until the next one."""
        self._read_settings()
        if not (self._is_adaptive or self._fixed.is_any or self._meter.marks.is_active):
            self._unlimit()
            self._has_begun = True
            return _SETTINGS_EVERY_S
        before = self._applied
        try:
            while self._dead:
                self._store.leave(self._dead[0])
                self._dead.popleft()
            share = self._exchange(None)
            for _ in range(_MOST_CHANGES):
                change = self._decide(share)
                if change is None:
                    break
                share = self._exchange(change)
                if share.has_changed:
                    self._tell(change)
            if not self._is_held and self._slots.valid_until_s == 0.0:  # the refusal was no news
                self._confirm()
        except StoreAway as exc:
            if not self._is_away:
                self._is_away = True
                log.warning("limit.store_away", error=str(exc), share=self._applied)
            self._confirm()
            return _IDLE_S
        if self._is_away:
            self._is_away = False
            log.info("limit.store_back", share=share.slots)
        self._note()
        return self._next_s(share, has_changed=before != self._applied)

    def _confirm(self) -> None:
        """Keeps the share: this worker was not suspended, and only nobody answers."""
        self._is_held = False
        self._slots.valid_until_s = self._clock.monotonic_s() + _VALID_S
        self._advance()

    # The exchange. ----------------------------------------------------------------------------------------------

    def _exchange(self, change: Change | None) -> Share:
        now_s = self._clock.monotonic_s()
        applied = self._applied if self._has_begun else 0
        was_held, self._is_held = self._is_held or now_s >= self._slots.valid_until_s, False
        in_flight, demand = self._slots.in_flight, self._slots.demand
        is_wanted = demand >= max(1, applied)
        # What waits for a rate, and not for a slot, does not reach the limit in flight.
        is_full = is_wanted and not self._is_rate_reached
        reading = self._meter.read()
        if self._kept is not None:
            reading = Reading(
                reading.flow + self._kept.flow,
                max(filter(None, (reading.refused_epoch, self._kept.refused_epoch)), default=None),
                reading.back_tokens + self._kept.back_tokens,
            )
        full_ms = (
            max(applied, in_flight) * round((now_s - self._reported_s) * 1000)
            if is_full and self._was_full
            else 0
        )
        # Not one of the moments in which calls have ended and the next ones have not begun.
        open_ms = round(max(in_flight, self._was_open) * (now_s - self._reported_s) * 1000)
        fixed = self._fixed
        is_told = self._slots.permits is not None  # also of a rate that another ledger has set
        has_rates = is_told or fixed.requests_per_minute is not None or fixed.tokens_per_minute is not None
        wanted = self._want_permits() if has_rates or self._meter.marks.is_active else 0
        unused = self._slots.take_permits(-wanted) if wanted < 0 else 0
        report = Report(
            self._worker_id,
            self._own_limit,
            is_adaptive=self._is_adaptive,
            applied=applied,
            in_flight=in_flight,
            # Only as many jobs are fetched as the share has room for: who has as many may want any number.
            demand=self._own_limit if is_wanted else demand + (demand > 0),
            epoch=self._meter.epoch,
            flow=reading.flow + Flow(full_ms=full_ms, open_ms=open_ms),
            wanted=max(0, wanted),
            unused=unused,
            each_tokens=self._meter.reserved_tokens or 1,
            back_tokens=reading.back_tokens,
            told=self._meter.told(permits=self._slots.permits, slots=in_flight),
        )
        self._is_limited = True  # also by a report whose answer is lost
        try:
            share = self._store.exchange(report, fixed, change, has_others=self._known.has_others)
        except StoreAway:
            self._kept = replace(reading, flow=report.flow)
            self._meter.marks.keep(report.told)
            raise
        finally:
            self._has_begun = True
            self._reported_s, self._was_full, self._was_open = now_s, is_full, in_flight
            self._has_woken = self._has_woken or (demand > 1 and not self._had_demand)
            self._had_demand = demand > 1  # a lone job now and then fills no limit
        self._kept = None
        self._refused_epoch = reading.refused_epoch
        self._limit = share.limit if self._is_adaptive else None
        self._latest = self._limit or self._latest
        self._meter.follow(self._limit)
        self._meter.reserved_tokens = self._meter.expected_tokens() if share.permits is not None else 0
        is_freed = share.permits is None and self._slots.permits is not None
        self._slots.grant(share.permits)
        self._is_rate_reached = share.permits is not None and share.permits < wanted
        is_told = self._meter.marks.is_active
        self._is_rate_far = share.permits is not None and not (
            self._is_rate_reached or share.wait_ms or is_told
        )
        is_resting = self._limit is not None and share.now_ms < self._limit.resume_ms
        is_unknown = self._is_adaptive and share.limit is None  # a change follows at once
        self._use(self._applied if is_unknown else 0 if is_resting else share.slots)
        is_undecided = change is None and reading.refused_epoch is not None
        if self._is_held or is_undecided:  # refused meanwhile, or what follows from a refusal is decided next
            self._slots.valid_until_s = 0.0
            return share
        self._slots.valid_until_s = now_s + _VALID_S
        if share.permits or was_held or is_freed:
            self._advance()
        return share

    def _use(self, slots: int) -> None:
        """Applies the share. No call that got its slot by a higher one is taken for one of the new limit."""
        if slots >= self._applied:
            self._slots.epoch = self._meter.epoch
        if slots != self._applied:
            self._applied = slots
            self._apply(slots)
        self._slots.epoch = self._meter.epoch

    def _want_permits(self) -> int:
        """How many more permits are needed until the next exchange; below 0: so many are not needed."""
        needed = self._slots.startable
        if self._is_rate_far:  # so that no call has to wait for the next exchange, nor causes one
            needed += 2 * self._slots.begun
        return needed - (self._slots.permits or 0)

    def _unlimit(self) -> None:
        """No limit is shared any more: this worker has its own again."""
        if not self._is_limited:
            return
        with suppress(StoreAway):  # then its share ends by itself
            self._store.leave(self._worker_id)
        self._slots.grant(None)
        self._slots.valid_until_s = float("inf")
        self._meter.follow(None)
        self._slots.epoch = self._meter.epoch
        self._meter.reserved_tokens = 0
        self._is_limited = False
        self._applied = self._own_limit
        self._apply(self._applied)
        self._note()

    # The found limit. -------------------------------------------------------------------------------------------

    def _decide(self, share: Share) -> Change | None:
        """The change of the limit that follows from what all workers saw; None: it stays."""
        if not self._is_adaptive:
            return None
        limit, cap, now_ms = share.limit, self._cap(), share.now_ms
        if limit is None:
            return Change(start(self._latest or self._known.found, cap=cap, now_ms=now_ms))
        after = limit
        openings, refused_epoch = self._openings(), self._refused_epoch
        has_opened, self._opened = openings > self._opened, openings  # fewer: another key is used now
        if limit.reason == _REOPENED:
            self._reopened_ms = limit.since_ms
        if has_opened and now_ms - self._reopened_ms > _REOPENED_MS:
            after = replace(reopen(limit, cap=cap, now_ms=now_ms), reason=_REOPENED)
        if after is limit and refused_epoch is not None:
            after = cut(limit, share.flow, epoch=refused_epoch, cap=cap, now_ms=now_ms)
        self._refused_epoch = None
        allowed, before = self._known.fixed.in_flight, self._allowed
        self._allowed = allowed
        if after is limit and before is not None and (allowed is None or allowed > before):
            after = allow_more(limit, before=before, cap=cap, now_ms=now_ms)
        if after is limit and self._has_woken:
            after = wake(limit, share.flow, now_ms=now_ms)
        self._has_woken = False
        if after is limit:
            after = step(limit, share.flow, cap=cap, now_ms=now_ms)
        return None if after is limit else Change(after, of_epoch=limit.epoch)

    @property
    def _fixed(self) -> Fixed:
        fixed = self._known.fixed
        return replace(fixed, in_flight=self._cap()) if self._is_by_key else fixed

    def _cap(self) -> int:
        in_flight = self._known.fixed.in_flight
        return max(1, self._own_limit if in_flight is None else min(self._own_limit, in_flight))

    def _tell(self, change: Change) -> None:
        limit, before = change.limit, self._remembered
        if before is None or before.value != limit.value:
            log.info("limit.changed", limit=limit.value, before=before and before.value, reason=limit.reason)
            self._remember(limit)

    # The ledger. ------------------------------------------------------------------------------------------------

    def _read_settings(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._known_s < _SETTINGS_EVERY_S:
            return
        self._known_s = now_s
        known = self._records.fetch()
        if known is not None:
            self._known = known

    def _remember(self, limit: Limit) -> None:
        self._remembered, self._remembered_s = limit, self._clock.monotonic_s()
        self._records.remember(limit, now_ms=self._clock.now_ms())

    def _note(self) -> None:
        now_s, limit = self._clock.monotonic_s(), self._limit
        if limit is not None and self._remembered is None:
            self._remembered = limit  # another worker keeps it
        if limit is not None and self._remembered is not None:
            if limit.value != self._remembered.value:
                self._remembered = limit
            elif now_s - self._remembered_s >= _REMEMBER_EVERY_S and limit.epoch != self._remembered.epoch:
                self._remember(limit)
        slots = self._applied if self._count_slots is None else self._count_slots()
        if slots != self._noted and now_s - self._noted_s >= _NOTE_SLOTS_EVERY_S:
            self._noted_s = now_s
            if self._records.note_slots(slots):
                self._noted = slots

    def _next_s(self, share: Share, *, has_changed: bool) -> float:
        if share.wait_ms and self._slots.startable:
            return min(_BUSY_S, share.wait_ms / 1000)
        is_resting = self._limit is not None and share.now_ms < self._limit.resume_ms
        # A try of another limit ends as soon as enough is known.
        is_trying = self._limit is not None and self._limit.phase is not Phase.HOLDING and self._was_full
        is_rate_near = share.permits is not None and not self._is_rate_far
        if has_changed or is_resting or is_trying or is_rate_near:
            return _BUSY_S
        return _STEADY_S if self._slots.demand else _IDLE_S


_REOPENED = "the gate has opened"
