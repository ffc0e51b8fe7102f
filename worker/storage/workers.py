"""Worker rows: heartbeat, lease, orphans, and the rescue of a dead worker's jobs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, bindparam, func, insert, select, update

from schemas.job import JobState
from worker.storage.claims import SOLO_AFTER_LOSSES
from worker.storage.outcomes import Claim, GiveBack, Loss
from worker.storage.tables import MAX_ROWS, AnyRow, attempts, is_in, jobs, workers
from worker.storage.transitions import record_outcomes

_UNIQUE_ID = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}")
# Built once, as each worker executes it twice a second.
_OTHERS = select(func.count()).where(
    workers.c.endpoint == bindparam("of_endpoint"),
    workers.c.ended_at_ms.is_(None),
    workers.c.id != bindparam("own_id"),
)
_ORPHAN_COLUMNS = (
    jobs.c.id,
    jobs.c.claims,
    jobs.c.generation,
    jobs.c.claim_token,
    jobs.c.claimed_at_ms,
    jobs.c.losses,
    jobs.c.solo_losses,
)


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker's sequence number as it was read. Rescue compares two of them, never two clocks."""

    worker_id: str
    sequence: int
    lease_ms: int


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """Facts of a worker process, for people."""

    id: str
    endpoint: str
    hostname: str
    pid: int
    slots: int
    started_at_ms: int
    beat_at_ms: int
    lease_ms: int
    running: int  # jobs that it has claimed, with those claimed ahead
    calls: int | None = None  # in flight, as it told last; None: of an older version

    @property
    def slots_in_use(self) -> int:
        return min(self.running, self.slots if self.calls is None else self.calls)

    @property
    def in_hand(self) -> int:
        """Claimed jobs that are not being called."""
        return self.running - self.slots_in_use

    def is_silent(self, now_ms: int) -> bool:
        """Whether its last beat is older than its lease. For people: it compares two clocks, which rescue does not."""
        return now_ms - self.beat_at_ms > self.lease_ms


def register_worker(
    connection: Connection,
    worker_id: str,
    *,
    endpoint: str,
    hostname: str,
    pid: int,
    slots: int,
    lease_ms: int,
    now_ms: int,
) -> None:
    """Writes the row of a new worker process, with a new id."""
    connection.execute(
        insert(workers).values(
            id=worker_id,
            endpoint=endpoint,
            hostname=hostname,
            pid=pid,
            slots=slots,
            lease_ms=lease_ms,
            sequence=1,
            started_at_ms=now_ms,
            beat_at_ms=now_ms,
        )
    )


def beat(connection: Connection, worker_id: str, *, now_ms: int) -> bool:
    """Raises the sequence number. False if the row is gone. A worker that was marked as lost is live again."""
    changed = connection.execute(
        update(workers)
        .where(workers.c.id == worker_id)
        .values(sequence=workers.c.sequence + 1, beat_at_ms=now_ms, ended_at_ms=None, end_reason=None)
    )
    return changed.rowcount == 1


@dataclass(frozen=True, slots=True)
class CallsNow:
    """The calls that a worker has in flight, and when the oldest of them began."""

    count: int
    oldest_ms: int | None


def note_calls(connection: Connection, worker_id: str, calls: CallsNow) -> None:
    """Notes which calls the worker has in flight now, for people."""
    connection.execute(
        update(workers)
        .where(workers.c.id == worker_id)
        .values(calls=calls.count, oldest_call_ms=calls.oldest_ms)
    )


def note_slots(connection: Connection, worker_id: str, *, slots: int) -> None:
    """Notes how many slots the worker has now."""
    connection.execute(update(workers).where(workers.c.id == worker_id).values(slots=slots))


def count_others(connection: Connection, endpoint: str, *, worker_id: str) -> int:
    """How many other workers of this endpoint have not ended."""
    return int(connection.execute(_OTHERS, {"of_endpoint": endpoint, "own_id": worker_id}).scalar_one())


def end_worker(connection: Connection, worker_id: str, *, reason: str, now_ms: int) -> None:
    """Marks the worker as ended (`stopped`, `lost`)."""
    connection.execute(
        update(workers)
        .where(workers.c.id == worker_id, workers.c.ended_at_ms.is_(None))
        .values(ended_at_ms=now_ms, end_reason=reason)
    )


def fetch_beats(connection: Connection) -> list[Beat]:
    """The beats of all workers that may have claims: those that have not ended, and those with running jobs. Unordered.

    A worker with running jobs and without a row has sequence -1 and lease 0. Running jobs without a claim token do not
    count.
    """
    live = connection.execute(
        select(workers.c.id, workers.c.sequence, workers.c.lease_ms).where(workers.c.ended_at_ms.is_(None))
    )
    beats = {row.id: Beat(row.id, row.sequence, row.lease_ms) for row in live}
    holders = connection.execute(
        select(jobs.c.worker_id, workers.c.sequence, workers.c.lease_ms)
        .select_from(jobs.outerjoin(workers, workers.c.id == jobs.c.worker_id))
        .where(_is_claimed(), jobs.c.worker_id.is_not(None))
        .distinct()
    )
    for row in holders:
        sequence = -1 if row.sequence is None else row.sequence
        beats.setdefault(row.worker_id, Beat(row.worker_id, sequence, row.lease_ms or 0))
    return list(beats.values())


def fetch_endpoint_of(connection: Connection, worker_id: str) -> str | None:
    """The endpoint that this worker serves or served; None if its row is not in this ledger."""
    found: str | None = connection.execute(
        select(workers.c.endpoint).where(workers.c.id == worker_id)
    ).scalar()
    return found


def is_known(connection: Connection, worker_id: str) -> bool:
    """Whether this ledger has the worker's row. Workers of several ledgers may share a home."""
    if fetch_endpoint_of(connection, worker_id) is not None:
        return True
    held = select(jobs.c.id).where(is_in(JobState.RUNNING), jobs.c.worker_id == worker_id).limit(1)
    return connection.execute(held).first() is not None


def release_orphans(
    connection: Connection, worker_id: str, *, open_claims: Collection[str], now_ms: int
) -> list[str]:
    """Queues orphans of this worker again, unburnt, at most 500. Returns their ids.

    Orphans run under this worker, but are not among `open_claims`, the jobs in its memory: the answer to a COMMIT was
    lost, or a thread died.
    """
    rows = connection.execute(select(jobs.c.id).where(_is_claimed(), jobs.c.worker_id == worker_id))
    orphans = sorted(row.id for row in rows if row.id not in open_claims)[:MAX_ROWS]
    if not orphans:
        return []
    locked = connection.execute(
        select(*_ORPHAN_COLUMNS)
        .where(jobs.c.id.in_(orphans), _is_claimed(), jobs.c.worker_id == worker_id)
        .order_by(jobs.c.id)
        .with_for_update()
    ).all()
    returned = [_outcome(row, worker_id, now_ms=now_ms, max_solo_losses=None) for row in locked]
    record_outcomes(connection, returned)
    return [row.id for row in locked]


def is_of_this_ledger(connection: Connection, worker_id: str, claims: Iterable[tuple[str, str]]) -> bool:
    """Whether this ledger has the worker's row, or one of its `claims` (job id and token).

    A worker's row is written before its first claim, and never removed. The claims are checked for a database that was
    restored from a backup, and for workers of older versions.
    """
    if fetch_endpoint_of(connection, worker_id) is not None:
        return True
    is_empty = True  # without a readable claim nothing shows that it belongs to another ledger
    for job_id, token in claims:
        is_empty = False
        found = connection.execute(select(jobs.c.claim_token).where(jobs.c.id == job_id)).first()
        # A UUID names one job in all ledgers. Another id, which a producer chose, may name two.
        if found is not None and (found.claim_token == token or _UNIQUE_ID.fullmatch(job_id)):
            return True
        lost = select(attempts.c.job_id).where(attempts.c.job_id == job_id, attempts.c.claim_token == token)
        if connection.execute(lost).first() is not None:
            return True
    return is_empty


def rescue_jobs(
    connection: Connection,
    worker_id: str,
    *,
    max_solo_losses: int,
    now_ms: int,
    has_given_back: bool = False,
) -> list[str]:
    """Queues jobs of a dead worker again, or fails them as `worker_lost`. At most 500; returns their ids.

    Only solo losses count towards `worker_lost`, as another job may have caused the others. `has_given_back`: the
    worker ended in order while the database was away; then no loss is counted. Call again until it returns none, then
    mark the worker as lost.
    """
    rows = connection.execute(
        select(*_ORPHAN_COLUMNS)
        .where(_is_claimed(), jobs.c.worker_id == worker_id)
        .order_by(jobs.c.id)
        .limit(MAX_ROWS)
        .with_for_update(skip_locked=True)
    ).all()
    most = None if has_given_back else max_solo_losses
    record_outcomes(
        connection, [_outcome(row, worker_id, now_ms=now_ms, max_solo_losses=most) for row in rows]
    )
    return [row.id for row in rows]


def fetch_workers(connection: Connection) -> list[WorkerFacts]:
    """The workers that have not ended, oldest first."""
    running = (
        select(func.count())
        .where(is_in(JobState.RUNNING), jobs.c.worker_id == workers.c.id)
        .correlate(workers)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(
            workers.c.id,
            workers.c.endpoint,
            workers.c.hostname,
            workers.c.pid,
            workers.c.slots,
            workers.c.started_at_ms,
            workers.c.beat_at_ms,
            workers.c.lease_ms,
            running,
            workers.c.calls,
        )
        .where(workers.c.ended_at_ms.is_(None))
        .order_by(workers.c.started_at_ms, workers.c.id)
    )
    return [WorkerFacts(*tuple(row)) for row in rows]


def _is_claimed() -> ColumnElement[bool]:
    # Without a token no attempt can be written. The doctor repairs such a job; it must not break a heartbeat.
    return is_in(JobState.RUNNING) & jobs.c.claim_token.is_not(None)


def _outcome(row: AnyRow, worker_id: str, *, now_ms: int, max_solo_losses: int | None) -> Loss | GiveBack:
    """The outcome of the claim in `row`: a loss; if `max_solo_losses` is None, a give back."""
    claim = Claim(row.id, row.claim_token, row.claims, row.generation, worker_id)
    if max_solo_losses is None:
        return GiveBack(claim, row.claimed_at_ms, now_ms)
    solo_losses = row.solo_losses + (row.losses >= SOLO_AFTER_LOSSES)
    return Loss(
        claim,
        row.claimed_at_ms,
        now_ms,
        losses=row.losses + 1,
        solo_losses=solo_losses,
        is_given_up=solo_losses >= max_solo_losses,
    )
