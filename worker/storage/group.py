"""Group commit: claims and records of all slots, gathered and written in one transaction.

A commit a job costs five times as much and stalls the slots. One thread writes; while it commits, the next
group gathers by itself. A lone request is not held back for company.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection

from worker.clock import Clock
from worker.storage.claims import claim_jobs, fetch_suspects
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway
from worker.storage.intake import NewJob, adopt_jobs
from worker.storage.outcomes import ClaimedJob, Outcome, Recorded
from worker.storage.records import record_outcomes
from worker.storage.reply import Reply
from worker.storage.tables import MAX_ROWS
from worker.storage.window import unmark_published, unmark_strays

log = structlog.get_logger(__name__)
T = TypeVar("T")
_RETRY_FIRST_S = 0.1
_RETRY_CAP_S = 2.0
_COMMITS_A_WINDOW = 4
_WINDOW_CAP_S = 0.06


@dataclass(slots=True)
class _Group:
    """What one transaction writes. At most one claim and one outcome a job."""

    claims: dict[str, Reply[ClaimedJob | None]] = field(default_factory=dict)
    adopted: dict[str, NewJob] = field(default_factory=dict)  # claims of jobs that came in their message
    outcomes: dict[str, tuple[Outcome, Reply[Recorded]]] = field(default_factory=dict)
    returned: list[str] = field(default_factory=list)
    works: list[tuple[Callable[[Connection], Any], Reply[Any]]] = field(default_factory=list)
    owed: list[tuple[Callable[[Connection], Any], Reply[Any]]] = field(default_factory=list)  # of `begin`

    def __len__(self) -> int:
        return len(self.claims) + len(self.outcomes) + len(self.returned) + len(self.works) + len(self.owed)


_Item = tuple[str, Any, Any]
_NOTHING = _Group()


class WriterStopped(Exception):
    """The writer has ended; nothing more is claimed."""


class RunsAlone(Exception):
    """The job was lost with its worker too often to be claimed beside others."""


class GroupWriter:
    """The one writer of a worker process. Its methods block the calling slot until the commit is known."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        worker_id: str,
        endpoint: str,
        clock: Clock,
        window_s: float,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`on_death` is told, in the writer's thread, of the error that ended it."""
        self.worker_id = worker_id
        self.held: dict[str, str] = {}  # job id to token: what this process knows that it runs
        self._ledger = ledger
        self.endpoint = endpoint
        self._clock = clock
        self._window_s = window_s
        self._on_death = on_death
        self._alone: set[str] = set()  # jobs whose claimer is alone in this process
        self._pending: deque[_Item] = deque()
        self._writing = _NOTHING  # what the writer has in its hands
        self._lock = threading.Lock()
        self._wake = threading.Event()  # there is work
        self._hurry = threading.Event()  # somebody must not wait for company
        self._stopping = threading.Event()
        self._groups = 0
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

    def claim(
        self, job_id: str, *, adopt: NewJob | None = None, is_urgent: bool = False, is_alone: bool = False
    ) -> ClaimedJob | None:
        """The job, now ours alone, or None when it is not to be had. Waits while the database is away.

        An urgent one is not kept waiting for company.
        `adopt` becomes the job's row first, in the same transaction, if it has none. Raises WriterStopped
        during a shutdown, and RunsAlone where the claimer `is_alone` not and has to be.
        """
        future: Reply[ClaimedJob | None] = Reply()
        if is_alone:
            self._alone.add(job_id)
        try:
            self._put(("claim", (job_id, adopt), future), is_urgent=is_urgent)
            return future.result()
        finally:
            if is_alone:
                self._alone.discard(job_id)

    def record(self, outcome: Outcome, *, is_urgent: bool = False, within_s: float | None = None) -> Recorded:
        """What the ledger did with the outcome. Raises DatabaseAway; the claim is then still held here.

        Also where there is no answer within `within_s`: it may be written yet, and written again it counts once.
        """
        future: Reply[Recorded] = Reply()
        self._put(("record", outcome, future), is_urgent=is_urgent)
        return future.result(within_s)

    def abandon_records(self) -> None:
        """Raises DatabaseAway in all who wait for a record: this process ends, and the database hangs."""
        exc = DatabaseAway("the database does not answer, and the worker ends")
        with self._lock:
            waiting = [future for kind, _, future in self._pending if kind == "record"]
            waiting += [future for _, future in self._writing.outcomes.values()]
        for future in waiting:
            future.set_exception(exc)

    def forget(self, job_id: str) -> None:
        """Lets go of a claim whose outcome could not be written: the next beat releases it."""
        self.held.pop(job_id, None)

    def give_message_back(self, job_id: str) -> None:
        """Marks an unclaimed job as not published, so that the relay publishes it again. Does not wait.

        While the database is away it is kept in mind.
        """
        self._put(("return", job_id, None))

    def begin(self, work: Callable[[Connection], object]) -> Reply[Any]:
        """Has `work` run between the groups without waiting for it: for threads that must not wait.

        While the database is away it is kept in mind.
        """
        future: Reply[Any] = Reply()
        self._put(("owed", work, future))
        return future

    def call(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, run between the groups in the writer's thread. Raises DatabaseAway."""
        future: Reply[T] = Reply()
        self._put(("work", work, future), is_urgent=True)
        return future.result()

    def _put(self, item: _Item, *, is_urgent: bool = False) -> None:
        with self._lock:
            if self._has_ended:
                raise WriterStopped
            self._pending.append(item)
            is_first = len(self._pending) == 1
        if is_urgent:
            self._hurry.set()
        if is_first:
            self._wake.set()

    def _live(self) -> None:
        """Runs the writer. An error that nobody thought of ends it, and no caller waits for ever: paid answers are
        told that the database is away, and go to the spool; claims, that the worker ends."""
        try:
            self._run()
        except BaseException as exc:
            with self._lock:
                self._has_ended = True
                left, self._pending = list(self._pending), deque()
            self._fail_all_but_claims(self._writing, DatabaseAway("the writer has ended"))
            for _, answer in self._writing.owed:
                answer.set_exception(DatabaseAway("the writer has ended"))
            for waiting in self._writing.claims.values():
                waiting.set_exception(WriterStopped())
            for kind, _, future in left:
                if future is not None:
                    future.set_exception(
                        WriterStopped() if kind == "claim" else DatabaseAway("the writer has ended")
                    )
            if self._on_death is None:
                raise
            self._on_death(exc)

    def _run(self) -> None:
        is_busy = False
        commit_s = 0.0
        while True:
            self._wake.wait()
            if is_busy and self._window_s:
                # Company is likely: let it gather, for longer where a commit takes long.
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
            began_s = time.perf_counter()
            self._write(group)
            self._writing = _NOTHING
            commit_s = time.perf_counter() - began_s

    def _gather(self) -> _Group:
        group = _Group()
        later: list[_Item] = []
        with self._lock:
            # Whatever breaks from here on, whoever waits is found in the one or the other.
            self._writing = group
            try:
                while self._pending and len(group) < MAX_ROWS:
                    item = self._pending[0]
                    kind, what, future = item
                    if kind == "claim" and what[0] not in group.claims:
                        job_id, adopt = what
                        group.claims[job_id] = future
                        if adopt is not None:
                            group.adopted[job_id] = adopt
                    elif kind == "record" and what.job_id not in group.outcomes:
                        group.outcomes[what.job_id] = (what, future)
                    elif kind == "return":
                        group.returned.append(what)
                    elif kind == "work":
                        group.works.append((what, future))
                    elif kind == "owed":
                        group.owed.append((what, future))
                    else:
                        later.append(item)
                    self._pending.popleft()
            finally:
                self._pending.extendleft(reversed(later))
        return group

    def _write(self, group: _Group) -> None:
        self._groups += 1
        token = f"{self.worker_id}:{self._groups}"
        try:
            try:
                self._commit(group, token)
            except DatabaseAway:
                # A connection that broke while idle is not an outage: the second try has a new one.
                self._commit(group, token)
        except DatabaseAway as exc:
            self._wait_out(group, token, exc)
        except Exception as exc:
            # Not swallowed: it reaches the one slot that it concerns, and nobody waits for ever. One row
            # that cannot be stored must not cost its neighbours their record.
            self._bisect(group, exc)

    def _commit(self, group: _Group, token: str) -> None:
        now_ms = self._clock.now_ms()

        def work(
            connection: Connection,
        ) -> tuple[list[Recorded], dict[str, ClaimedJob], set[str], list[Any]]:
            # Before the claims: a beat would take those of its own group, not in `held` yet, for orphans.
            answers = [ask(connection) for ask, _ in group.works]
            answers += [ask(connection) for ask, _ in group.owed]
            recorded = record_outcomes(connection, [o for o, _ in group.outcomes.values()])
            for start in range(0, len(group.returned), MAX_ROWS):
                unmark_published(connection, group.returned[start : start + MAX_ROWS])
            # A message that carries its own request becomes a row in the transaction that claims it.
            adopt_jobs(connection, list(group.adopted.values()), now_ms=now_ms)
            wanted = [job_id for job_id in group.claims if job_id not in self.held]
            claim = partial(
                claim_jobs,
                connection,
                worker_id=self.worker_id,
                token=token,
                endpoint=self.endpoint,
                now_ms=now_ms,
            )
            claimed = claim([job_id for job_id in wanted if job_id not in self._alone])
            claimed |= claim([job_id for job_id in wanted if job_id in self._alone], are_alone=True)
            # Whoever was not to be had is a second delivery, mostly; a few of them have to run alone.
            unclaimed = [job_id for job_id in wanted if job_id not in claimed]
            suspects = fetch_suspects(connection, unclaimed)
            if unclaimed:  # mostly not: then it costs nothing
                unmark_strays(connection, unclaimed, self.endpoint)
            return recorded, claimed, suspects, answers

        recorded, claimed, suspects, answers = self._ledger.run(work)
        for job_id, job in claimed.items():
            self.held[job_id] = job.token
        for (outcome, future), what in zip(group.outcomes.values(), recorded, strict=True):
            if self.held.get(outcome.job_id) == outcome.token:
                del self.held[outcome.job_id]
            future.set_result(what)
        for job_id, waiting in group.claims.items():
            if job_id in suspects:
                waiting.set_exception(RunsAlone())
            else:
                waiting.set_result(claimed.get(job_id))
        for (_, answer), value in zip([*group.works, *group.owed], answers, strict=True):
            answer.set_result(value)

    def _wait_out(self, group: _Group, token: str, exc: DatabaseAway) -> None:
        """Tells everyone but the claims, which wait here for the database: nothing may be called meanwhile."""
        log.warning("ledger.away", error=str(exc), claims=len(group.claims), records=len(group.outcomes))
        self._fail_all_but_claims(group, exc)
        # Hints given back and the work of `begin` are asked for only once, so they are kept for the retry.
        claims = _Group(claims=group.claims, adopted=group.adopted, returned=group.returned, owed=group.owed)
        delay_s = _RETRY_FIRST_S
        while True:
            if self._stopping.wait(delay_s):
                for future in claims.claims.values():
                    future.set_exception(WriterStopped())
                return
            # Records that arrive meanwhile must not wait for us: they have a spool.
            newer = self._gather()
            self._fail_all_but_claims(newer, exc)
            claims.returned = sorted({*claims.returned, *newer.returned})
            claims.owed += newer.owed
            for job_id, future in newer.claims.items():
                if job_id in claims.claims:
                    future.set_result(None)  # a second delivery of a job that waits here already
                else:
                    claims.claims[job_id] = future
                    if job_id in newer.adopted:
                        claims.adopted[job_id] = newer.adopted[job_id]
            self._writing = claims
            try:
                self._commit(claims, token)
            except DatabaseAway:
                delay_s = min(delay_s * 2, _RETRY_CAP_S)
                continue
            except Exception as other:
                self._bisect(claims, other)
            log.info("ledger.back")
            return

    def _fail_all_but_claims(self, group: _Group, exc: DatabaseAway) -> None:
        for _, future in group.outcomes.values():
            future.set_exception(exc)
        for _, answer in group.works:
            answer.set_exception(exc)

    def _bisect(self, group: _Group, exc: Exception) -> None:
        if len(group) == 1:
            futures: list[Reply[Any]] = [
                *group.claims.values(),
                *(future for _, future in group.outcomes.values()),
                *(future for _, future in group.works),
                *(future for _, future in group.owed),
            ]
            for future in futures:
                future.set_exception(exc)
            if group.returned or group.owed:
                log.error("ledger.unwritten", error=type(exc).__name__, is_given_back=bool(group.returned))
            return
        for half in _halves(group):
            self._write(half)


def _halves(group: _Group) -> list[_Group]:
    halves = [_Group(), _Group()]
    for i, (job_id, claim) in enumerate(group.claims.items()):
        halves[i % 2].claims[job_id] = claim
        if job_id in group.adopted:
            halves[i % 2].adopted[job_id] = group.adopted[job_id]
    for i, (job_id, outcome) in enumerate(group.outcomes.items(), start=len(group.claims)):
        halves[i % 2].outcomes[job_id] = outcome
    for i, job_id in enumerate(group.returned, start=len(group.claims) + len(group.outcomes)):
        halves[i % 2].returned.append(job_id)
    start = len(group.claims) + len(group.outcomes) + len(group.returned)
    for i, work in enumerate(group.works, start=start):
        halves[i % 2].works.append(work)
    start += len(group.works)
    for i, owe in enumerate(group.owed, start=start):
        halves[i % 2].owed.append(owe)
    return [half for half in halves if len(half)]
