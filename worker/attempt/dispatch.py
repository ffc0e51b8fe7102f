"""Dispatching: each received job is claimed ahead of the slots, and called by a thread once a slot is free.

A claim waits for its group's commit. So no slot and no thread waits with it: the claim's answer, in the writer's
thread, hands the job on, and a thread is woken once there is a call to make (docs/adr/0028).
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

import structlog

from schemas.shortage import describe_shortage, is_local_shortage
from worker.attempt.execute import Executor, Spool
from worker.attempt.key_slots import KeyHold
from worker.attempt.report import GIVEN_BACK, NOT_ADMITTED, NOTHING_TO_DO, PUT_OFF, Report, Verdict
from worker.attempt.slots import Slots
from worker.attempt.turns import Turns
from worker.clock import Clock
from worker.errors import Stopping
from worker.policy.routing import ANY
from worker.storage.errors import RunsAlone, WriterStopped
from worker.storage.outcomes import ClaimedJob
from worker.storage.reply import OnceAnswer
from worker.storage.writer import GroupWriter

log = structlog.get_logger(__name__)
_CLAIMS_COVERED = 3.0  # ahead of the slots: so many times as many as end while a claim takes
_LONGEST_CLAIM_S = 1.0
_SMOOTHING = 0.05  # of one claim's or call's duration in the means


@dataclass(slots=True, eq=False)
class Received:
    """A job whose message was received.

    `begin` is told, in a thread of its own, that the call begins; `finish`, what became of the job. Both once at most,
    and `finish` always, but where Celery's pool drops what it has in line: that worker ends, and gives all messages
    back that it has.
    """

    job_id: str
    is_bulk: bool
    finish: Callable[[Report], None]
    begin: Callable[[], None]
    model: str | None = None  # where it is known before the claim
    routes: int = ANY  # the endpoints that may serve it
    route: int = 0  # the one that is called
    job: ClaimedJob | None = field(default=None, repr=False)
    claim_asked_s: float = 0.0  # when, as the others by a monotonic clock
    claimed_s: float = 0.0
    called_s: float = 0.0
    epoch: int = 0
    hold: KeyHold | None = None  # its slot at one of several keys
    has_left: bool = False  # its slot


class Dispatcher:
    """One per process. Thread-safe; only what `spawn` runs may block."""

    def __init__(
        self,
        executor: Executor,
        slots: Slots[Received],
        *,
        writer: GroupWriter,
        spool: Spool,
        clock: Clock,
        spawn: Callable[[Callable[[], None]], object],
        ahead_limit: int,
        on_ahead: Callable[[int], None],
        on_lack: Callable[[], None] = lambda: None,
    ) -> None:
        """`spawn` runs a function in a thread that may block, and raises RuntimeError where none is to be had.

        `ahead_limit`: the most jobs of each kind that are claimed and wait for a slot; never more than half of the
        slots. `on_ahead` is told of a new number that is aimed at, and of each new limit of the slots. `on_lack` is
        told when a job waits for the limit of all workers, and not for a slot of this one, and when a bulk job comes
        after a time without any.
        """
        self._executor = executor
        self._routes = executor.routes
        self._slots = slots
        self._writer = writer
        self._spool = spool
        self._clock = clock
        self._ahead_limit = ahead_limit
        self._on_ahead = on_ahead
        self._on_lack = on_lack
        # Without a slot here, a job is another worker's. Where its endpoints are shut, it is nobody's for a while: its
        # message ends, and the relay publishes the job again.
        self._surplus_report = NOT_ADMITTED if executor.routes.choose else GIVEN_BACK
        self._turns = Turns()
        self._claim_s = self._call_s = 0.0  # how long one takes, smoothed
        self._waits_for_spool = threading.Lock()  # held by the one thread that waits
        self._solo: deque[Received] = deque()  # jobs that run alone and have no thread yet
        self._untold: SimpleQueue[tuple[Received, Report]] = SimpleQueue()  # since the pool is shut
        self._tells = threading.Lock()  # held by the one thread that tells them
        self._run_soon = spawn

    def receive(self, one: Received) -> None:
        """Takes the job on. Does not block; `one.finish` is called in the end."""
        one.routes = self._routes.find(one.model)
        if self._turns.puts_off(one.job_id):
            self._finish(one, PUT_OFF)
        elif self._slots.add(one):
            self.advance()
        else:
            self._finish(one, GIVEN_BACK)

    def advance(self) -> None:
        """Claims what may be claimed now, and starts what may be called now."""
        if self._spool.is_writable:
            for one in self._slots.take_claimable():
                self._claim(one)
            for _ in range(self._slots.take_slots()):
                self._spawn(self._run_next)
            if self._slots.lacks:
                self._on_lack()
        elif self._waits_for_spool.acquire(blocking=False):
            self._spawn(self._wait_for_spool, or_else=self._waits_for_spool.release)

    def set_limit(self, bulk_limit: int, lone_limit: int | None) -> None:
        """Changes how many slots there are; see `Slots.set_limit`. Starts what may be called now. Does not block."""
        self.follow(self._slots.set_limit(bulk_limit, lone_limit))

    def follow(self, surplus: Sequence[Received]) -> None:
        """The slots have changed: gives claimed jobs back that have none now, and starts what may be called."""
        for one in surplus:
            self._give_back(one, self._surplus_report)
        self._aim(is_new_limit=True)
        self.advance()

    def stop(self) -> None:
        """Gives back what has no thread yet, claimed or not; those in a call go on.

        Claims on their way are given back once they are answered. They are not waited for while the database is away.
        """
        waiting, claimed = self._slots.stop()
        self._writer.refuse_claims()
        self._break_solo_off()
        for one in waiting:
            self._finish(one, GIVEN_BACK)
        for one in claimed:
            self._give_back(one)

    # The claim: in the hub's thread, and its answer in the writer's. --------------------------------------------

    def _claim(self, one: Received) -> None:
        refusal = self._executor.refuse(one.job_id, one.routes)
        if refusal is not None:
            self._drop(one, refusal)
            return
        one.claim_asked_s = self._clock.monotonic_s()
        answer = OnceAnswer(partial(self._claimed, one), partial(self._not_claimed, one))
        try:
            self._writer.begin_claim(one.job_id, answer, is_urgent=not one.is_bulk)
        except WriterStopped:
            self._drop(one, GIVEN_BACK)

    def _claimed(self, one: Received, job: ClaimedJob | None) -> None:
        """The writer's answer."""
        if job is None:
            self._drop(one, NOTHING_TO_DO)
            return
        now_s = self._clock.monotonic_s()
        # Not how long the database was away: as many would be claimed ahead for long after.
        self._claim_s = _smooth(self._claim_s, min(_LONGEST_CLAIM_S, now_s - one.claim_asked_s))
        one.job, one.claimed_s = job, now_s
        one.routes = self._routes.find(job.model)
        if self._slots.add_claimed(one):
            self.advance()
        else:
            self._give_back(one, GIVEN_BACK if self._slots.is_stopping else self._surplus_report)

    def _not_claimed(self, one: Received, exc: BaseException) -> None:
        """The writer's answer where there is none."""
        if isinstance(exc, RunsAlone):
            self._slots.leave(one, has_slot=False)
            self._solo.append(one)
            if self._slots.is_stopping:
                self._break_solo_off()
            else:
                self._spawn(self._run_next_alone, or_else=self._break_solo_off)
        elif isinstance(
            exc, Stopping
        ):  # a second message of a job in a call, perhaps: what is open stays open
            self._drop(one, GIVEN_BACK)
        elif isinstance(exc, WriterStopped):
            self._writer.forget_untold(one.job_id, exc)  # then the worker's end releases it
            self._drop(one, GIVEN_BACK)
        else:
            log.error("claim.failed", job_id=one.job_id, error=type(exc).__name__, exc_info=exc)
            self._drop(one, NOTHING_TO_DO)

    def _drop(self, one: Received, report: Report) -> None:
        self._slots.leave(one, has_slot=False)
        self._slots.end()
        self._finish(one, report)

    def _give_back(self, one: Received, report: Report = GIVEN_BACK) -> None:
        """Of a job that was claimed and has no slot."""
        assert one.job is not None
        self._slots.leave(one, has_slot=False)

        def is_back() -> None:
            self._slots.end()
            self._finish(one, report)

        self._executor.give_back_soon(one.job, is_back)

    # The call: in a thread of its own. --------------------------------------------------------------------------

    def _run_next(self) -> None:
        one = self._slots.take_started()
        if one is not None:
            self._run(one, self._attempt)

    def _run(self, one: Received, attempt: Callable[[Received], Report]) -> None:
        try:
            report = attempt(one)
        except (Stopping, WriterStopped):
            report = GIVEN_BACK
        except Exception as exc:
            # A defect of ours: the next beat releases the claim, and the worker keeps its thread.
            log.error("attempt.broke", job_id=one.job_id, error=type(exc).__name__, exc_info=exc)
            self._writer.forget(one.job_id)
            report = Report(Verdict.BROKE, type(exc).__name__)
        self._slots.end()
        self._tell(one, report)

    def _run_next_alone(self) -> None:
        try:
            one = self._solo.popleft()
        except IndexError:  # a shutdown took it
            return
        self._run(one, self._attempt_alone)
        self.advance()  # the others were held back

    def _break_solo_off(self) -> None:
        """Gives back the jobs that run alone and have no thread yet: a pool that is shut drops what it has in line."""
        with suppress(IndexError):
            while True:
                one = self._solo.popleft()
                self._slots.end()
                self._finish(one, GIVEN_BACK)

    def _attempt(self, one: Received) -> Report:
        assert one.job is not None
        one.called_s = self._clock.monotonic_s()
        try:
            one.begin()
            return self._executor.attempt(
                one.job,
                route=one.route,
                epoch=one.epoch,
                hold=one.hold,
                waited_s=one.called_s - one.claimed_s,
                leave_slot=lambda: self._leave(one),
            )
        finally:
            self._leave(one)

    def _leave(self, one: Received) -> None:
        """The call has ended: the next one need not wait until this one is written down."""
        if one.has_left:
            return
        one.has_left = True
        self._slots.leave(one)
        self._call_s = _smooth(self._call_s, self._clock.monotonic_s() - one.called_s)
        self._aim()
        self.advance()

    def _attempt_alone(self, one: Received) -> Report:
        """Claims once no other job is claimed or in a call here: a crash would be counted as their loss, too."""
        if not self._turns.begin(one.job_id):
            return PUT_OFF
        try:
            with self._slots.alone():
                try:
                    job = self._writer.claim(one.job_id, is_urgent=True, is_alone=True)
                except WriterStopped as exc:
                    self._writer.forget_untold(one.job_id, exc)  # then the worker's end releases it
                    raise
                if job is None:
                    return NOTHING_TO_DO
                one.routes = self._routes.find(job.model)
                if not self._slots.begin_alone(one):
                    return self._executor.put_back(job)
                try:
                    one.begin()
                    return self._executor.attempt(job, route=one.route, hold=one.hold)
                finally:
                    self._slots.end_alone(one)
        finally:
            with suppress(WriterStopped):  # then this worker's window is published again by the next
                for other in self._turns.end():
                    self._writer.give_message_back(other)

    def _aim(self, *, is_new_limit: bool = False) -> None:
        slots = self._slots.bulk_limit
        limit = min(self._ahead_limit, max(1, slots // 2))
        ahead = choose_ahead(slots, self._claim_s, self._call_s, limit=limit)
        if ahead != self._slots.ahead or is_new_limit:
            self._slots.ahead = ahead
            self._on_ahead(ahead)

    # Both. ------------------------------------------------------------------------------------------------------

    def _finish(self, one: Received, report: Report) -> None:
        """In a thread of its own: to acknowledge a foreign message, the broker is asked."""

        def finish() -> None:
            self._tell(one, report)
            self.advance()  # another one may be claimed instead

        self._spawn(finish, or_else=lambda: self._tell_apart(one, report))

    def _tell_apart(self, one: Received, report: Report) -> None:
        """Where the pool is shut. The writer must not wait for a broker, nor the way out for a stalled one."""
        self._untold.put((one, report))
        if self._tells.acquire(blocking=False):
            try:
                threading.Thread(target=self._tell_all, name="antrean-untold", daemon=True).start()
            except (
                RuntimeError
            ) as exc:  # the next one tries again; a message of which nobody tells comes again
                self._tells.release()
                log.error("worker.shortage", lack=describe_shortage(exc))

    def _tell_all(self) -> None:
        while True:  # until the process ends
            self._tell(*self._untold.get())

    def _tell(self, one: Received, report: Report) -> None:
        try:
            one.finish(report)
        except Exception as exc:
            # The ledger has it, and the message comes again or is not needed: no thread and no writer ends by this.
            log.error("message.unfinished", job_id=one.job_id, error=type(exc).__name__, exc_info=exc)

    def _wait_for_spool(self) -> None:
        try:
            while not self._spool.is_writable:
                self._spool.wait_until_writable()
        except Stopping:
            return
        finally:
            self._waits_for_spool.release()
        self.advance()

    def _spawn(self, work: Callable[[], None], *, or_else: Callable[[], None] = lambda: None) -> None:
        """Has a thread do the work; `or_else` where there are none any more, because the worker ends."""
        try:
            self._run_soon(work)
        except RuntimeError as exc:
            if is_local_shortage(exc):
                # The pool has the work by then, for the next thread that is free.
                log.error("worker.shortage", lack=describe_shortage(exc))
            else:
                or_else()


def choose_ahead(slots: int, claim_s: float, call_s: float, *, limit: int) -> int:
    """How many jobs to claim ahead of so many slots, at least 1 and at most `limit`.

    As many as calls end while a claim takes, some times over, because calls end in groups. With slow answers that is
    one: a claim that waits for long is one that another worker could have had.
    """
    return min(limit, 1 + math.ceil(_CLAIMS_COVERED * slots * claim_s / max(call_s, 0.001)))


def _smooth(mean_s: float, value_s: float) -> float:
    return mean_s + _SMOOTHING * (value_s - mean_s) if mean_s else value_s
