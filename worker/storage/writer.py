"""Group commit: claims and records of all slots are gathered and written in one transaction.

A commit for each job costs five times as much and stalls the slots. One thread writes. While it commits, the next
group gathers. A request that comes alone is not held back until others come.

What a transaction does with the requests of a group is in `group_commit.py`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection

from worker.clock import Clock
from worker.errors import Stopping
from worker.storage.budgets import BudgetGuard, FindPrice
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway, RunsAlone, WriterStopped
from worker.storage.group_commit import Written, write_group
from worker.storage.intake import KnownJob, NewJob
from worker.storage.outcomes import ClaimedJob, Outcome, Recorded
from worker.storage.reply import Answer, Reply
from worker.storage.tables import MAX_ROWS
from worker.storage.writer_requests import (
    ClaimJob,
    GiveHintBack,
    OwedWork,
    RecordOutcome,
    Request,
    Work,
    WriteDownJob,
    fail,
    take_group,
)

log = structlog.get_logger(__name__)
T = TypeVar("T")
_RETRY_FIRST_S = 0.1
_RETRY_CAP_S = 2.0
_COMMITS_A_WINDOW = 4
_WINDOW_CAP_S = 0.06
_HANGS_AFTER_S = 5.0


class GroupWriter:
    """The one writer of a worker process. Thread-safe.

    `claim`, `write_down`, `record` and `call` block until the commit is known; all other methods return at once.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        worker_id: str,
        endpoint: str,
        clock: Clock,
        window_s: float,
        on_death: Callable[[BaseException], None] | None = None,
        find_price: FindPrice = lambda model: None,
    ) -> None:
        """`on_death` is told, in the writer's thread, of the error that ended it. `find_price` is for budgets."""
        self.worker_id = worker_id
        self.open_claims: dict[str, str] = {}  # job id to token: what this process knows that it runs
        self._ledger = ledger
        self.endpoint = endpoint
        self._clock = clock
        self._window_s = window_s
        self._on_death = on_death
        self._guard = BudgetGuard(find_price)
        self._alone: set[str] = set()  # jobs whose claimer is alone in this process
        self._pending: deque[Request] = deque()
        self._writing: list[Request] = []  # the group that is gathered or written now
        self._lock = threading.Lock()
        self._wake = threading.Event()  # there is work
        self._hurry = threading.Event()  # there is a request that must not wait for others
        self._stopping = threading.Event()
        self._refuses_claims = False  # while the database is away
        self._is_away = False
        self._writes_since_s: float | None = None  # the group that is written now
        self._groups = 0
        self._token = ""  # of the latest group
        self._has_ended = False
        self._thread = threading.Thread(target=self._live, name="antrean-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Writes what is pending and ends. False if that took longer than `timeout_s`."""
        self._stopping.set()
        self._hurry.set()
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def claim(self, job_id: str, *, is_urgent: bool = False, is_alone: bool = False) -> ClaimedJob | None:
        """The job, now ours alone, or None when it is not to be had. Waits while the database is away.

        An urgent one does not wait until others come. Raises WriterStopped or Stopping during a shutdown, and RunsAlone
        of a job that has to run alone, without `is_alone`.
        """
        reply: Reply[ClaimedJob | None] = Reply()
        if is_alone:
            self._alone.add(job_id)
        try:
            self.begin_claim(job_id, reply, is_urgent=is_urgent)
            return reply.result()
        finally:
            if is_alone:
                self._alone.discard(job_id)

    def begin_claim(self, job_id: str, answer: Answer[ClaimedJob | None], *, is_urgent: bool = False) -> None:
        """As `claim`, without waiting for it. Raises WriterStopped if the writer has ended."""
        self._put(ClaimJob(job_id, answer), is_urgent=is_urgent)

    def write_down(self, job: NewJob, *, is_urgent: bool = False) -> KnownJob:
        """The job behind a message that carries its own request: its new row, or the one that is there already.

        A new row that may be claimed counts as published: the caller claims it, or gives its message back. Waits while
        the database is away. Raises WriterStopped during a shutdown, and what the database raises where it takes no
        such row.
        """
        reply: Reply[KnownJob] = Reply()
        self._put(WriteDownJob(job, reply), is_urgent=is_urgent)
        return reply.result()

    def record(self, outcome: Outcome, *, is_urgent: bool = False, within_s: float | None = None) -> Recorded:
        """What the ledger did with the outcome. Raises DatabaseAway; the claim is then still open here.

        Also where there is no answer within `within_s`: it may be written yet, and written again it counts once.
        """
        reply: Reply[Recorded] = Reply()
        self.begin_record(outcome, reply, is_urgent=is_urgent)
        return reply.result(within_s)

    def begin_record(self, outcome: Outcome, answer: Answer[Recorded], *, is_urgent: bool = False) -> None:
        """As `record`, without waiting for it. Raises WriterStopped if the writer has ended."""
        self._put(RecordOutcome(outcome, answer), is_urgent=is_urgent)

    @property
    def is_stuck(self) -> bool:
        """Whether the database is away, or has left a group without an answer for seconds."""
        since_s = self._writes_since_s
        return self._is_away or (since_s is not None and time.monotonic() - since_s > _HANGS_AFTER_S)

    def refuse_claims(self) -> None:
        """Raises Stopping in all whose claim waits, or will wait, while the database is away: this process ends.

        A claim whose COMMIT had no answer may be in the ledger: the end of the worker releases it.
        """
        self._refuses_claims = True
        self._wake.set()

    def abandon_records(self) -> None:
        """Raises DatabaseAway in all who wait for a record: this process ends, and the database hangs."""
        exc = DatabaseAway("the database does not answer, and the worker ends")
        with self._lock:
            waiting = [one for one in (*self._writing, *self._pending) if isinstance(one, RecordOutcome)]
        for one in waiting:
            fail(one, exc)

    def forget(self, job_id: str) -> None:
        """Lets go of a claim whose outcome could not be written: the next beat releases it."""
        self.open_claims.pop(job_id, None)

    def forget_untold(self, job_id: str, exc: WriterStopped) -> None:
        """Lets go of a claim that the writer committed and did not tell, as it died. One from before stays open."""
        if self.open_claims.get(job_id) == exc.token:
            self.forget(job_id)

    def give_message_back(self, job_id: str) -> None:
        """Marks an unclaimed job as not published: the relay publishes it again. Kept while the database is away."""
        self._put(GiveHintBack(job_id))

    def begin(self, work: Callable[[Connection], object]) -> Reply[Any]:
        """Has `work` run with the next group, without waiting for it. Kept for later while the database is away."""
        reply: Reply[Any] = Reply()
        self._put(OwedWork(work, reply))
        return reply

    def call(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, run with the next group in the writer's thread. Raises DatabaseAway."""
        reply: Reply[T] = Reply()
        self._put(Work(work, reply), is_urgent=True)
        return reply.result()

    def _put(self, *requests: Request, is_urgent: bool = False) -> None:
        with self._lock:
            if self._has_ended:
                raise WriterStopped
            is_first = not self._pending
            self._pending.extend(requests)
        if is_urgent:
            self._hurry.set()
        if is_first:
            self._wake.set()

    def _live(self) -> None:
        """Runs the writer. An unexpected error ends it, and no caller waits for ever.

        Claims are told that the worker ends. All others are told that the database is away: paid answers go to the
        spool then.
        """
        try:
            self._run()
        except BaseException as exc:
            with self._lock:
                self._has_ended = True
                left = [*self._writing, *self._pending]
                self._pending.clear()
            for request in left:
                is_claim = isinstance(request, (ClaimJob, WriteDownJob))
                told = WriterStopped(self._token) if is_claim else DatabaseAway("the writer has ended")
                try:
                    fail(request, told)
                except Exception as other:  # the same may go wrong again: the others are told all the same
                    log.error("writer.untold", error=type(other).__name__, exc_info=other)
            if self._on_death is None:
                raise
            self._on_death(exc)

    def _run(self) -> None:
        is_busy = False
        commit_s = 0.0
        while True:
            self._wake.wait()
            if is_busy and self._window_s:
                # Others are likely to come: let them gather, for longer where a commit takes long.
                self._hurry.wait(max(self._window_s, min(_WINDOW_CAP_S, _COMMITS_A_WINDOW * commit_s)))
            with self._lock:
                if not self._pending:
                    if self._stopping.is_set():
                        self._has_ended = True
                        return
                    is_busy = False
                    self._wake.clear()
                    continue
                if not self._stopping.is_set():
                    self._hurry.clear()
            group = self._gather()
            is_busy = len(group) > 1
            began_s = self._writes_since_s = time.monotonic()
            self._write(group)
            self._writing = []
            self._writes_since_s = None
            commit_s = time.monotonic() - began_s

    def _gather(self) -> list[Request]:
        """The next group."""
        group: list[Request] = []
        with self._lock:
            self._writing = group
            take_group(self._pending, group, at_most=MAX_ROWS)
        return group

    def _write(self, group: list[Request]) -> None:
        """Writes the group. One that the database refuses is written in halves, down to the request that is at fault.

        One row that cannot be stored must not cost its neighbours their record.
        """
        parts = [group]
        while parts:
            part = parts.pop()
            self._groups += 1
            self._token = token = f"{self.worker_id}:{self._groups}"
            try:
                try:
                    written = self._commit(part, token)
                except DatabaseAway:
                    # A connection that broke while idle is not an outage: the second try has a new one.
                    written = self._commit(part, token)
            except DatabaseAway as exc:
                later = [request for other in reversed(parts) for request in other]
                parts = self._wait_out([*part, *later], token, exc)
            except Exception as exc:
                parts += self._halve(part, exc)
            else:
                self._tell(written)

    def _commit(self, group: list[Request], token: str) -> Written:
        """Commits the group, and knows from then on what it holds."""
        written = self._ledger.run(
            partial(
                write_group,
                group=group,
                worker_id=self.worker_id,
                endpoint=self.endpoint,
                token=token,
                open_claims=self.open_claims,
                alone=self._alone,
                guard=self._guard,
                now_ms=self._clock.now_ms(),
            )
        )
        for job_id, job in written.claimed.items():
            self.open_claims[job_id] = job.token
        for claim in written.ended:
            if self.open_claims.get(claim.job_id) == claim.token:
                del self.open_claims[claim.job_id]
        return written

    def _tell(self, written: Written) -> None:
        """Tells all callers. Outside of what catches errors: what is committed must not be written again."""
        for answer, value in written.answers:
            answer.set_result(value)
        for answer in written.refused:
            answer.set_exception(RunsAlone())

    def _wait_out(self, group: list[Request], token: str, exc: DatabaseAway) -> list[list[Request]]:
        """Tells those who cannot wait that the database is away, and writes the rest once it is back.

        Records that arrive meanwhile are told as well: they have a spool. Returns halves where the database refuses
        what has waited.
        """
        waiting: list[Request] = []
        self._is_away = True
        self._take_over(group, waiting, exc)
        claims = sum(isinstance(one, ClaimJob) for one in group)
        records = sum(isinstance(one, RecordOutcome) for one in group)
        log.warning("ledger.away", error=str(exc), claims=claims, records=records)
        delay_s = _RETRY_FIRST_S
        try:
            while True:
                if self._wait(delay_s, waiting, exc):
                    for request in waiting:
                        fail(request, WriterStopped())
                    return []
                try:
                    written = self._commit(waiting, token)
                except DatabaseAway:
                    delay_s = min(delay_s * 2, _RETRY_CAP_S)
                    continue
                except Exception as other:
                    log.info("ledger.back")
                    return self._halve(waiting, other)
                log.info("ledger.back")
                self._tell(written)
                return []
        finally:
            self._is_away = False
            self._wake.set()  # it was cleared here, whatever came since

    def _wait(self, delay_s: float, waiting: list[Request], exc: DatabaseAway) -> bool:
        """Waits until the next try is due. True: the writer is to end.

        What arrives meanwhile is told at once where it does not wait for the database: a paid answer must not stay in
        memory until the next try.
        """
        due_s = time.monotonic() + delay_s
        while not self._stopping.is_set():
            if self._refuses_claims:
                refused = [one for one in waiting if isinstance(one, ClaimJob)]
                waiting[:] = [one for one in waiting if not isinstance(one, ClaimJob)]
                for request in refused:
                    fail(request, Stopping())
            while self._pending:
                self._take_over(self._gather(), waiting, exc)
                self._writing = waiting
            left_s = due_s - time.monotonic()
            if left_s <= 0:
                return False
            if self._wake.wait(left_s):
                self._wake.clear()
        return True

    def _take_over(self, group: list[Request], waiting: list[Request], exc: DatabaseAway) -> None:
        """Adds to `waiting` those of the group that wait for the database, and tells the others `exc`."""
        claimed = {one.job_id for one in waiting if isinstance(one, ClaimJob)}
        for request in group:
            if not request.waits_for_database:
                fail(request, exc)
            elif self._refuses_claims and isinstance(request, ClaimJob):
                fail(request, Stopping())
            elif isinstance(request, ClaimJob) and request.job_id in claimed:
                request.reply.set_result(None)  # a second delivery of a job that waits here already
            else:
                waiting.append(request)

    def _halve(self, group: list[Request], exc: Exception) -> list[list[Request]]:
        """Both halves of the group, the first one last. Of a single request nothing is left: it is told `exc`."""
        if len(group) > 1:
            middle = len(group) // 2
            return [group[middle:], group[:middle]]
        for request in group:
            fail(request, exc)
            if isinstance(request, (GiveHintBack, OwedWork)):  # no caller is told
                is_hint = isinstance(request, GiveHintBack)
                log.error("ledger.unwritten", error=type(exc).__name__, is_given_back=is_hint)
        return []
