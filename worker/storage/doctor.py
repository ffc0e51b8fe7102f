"""What is wrong with a ledger: its defects, counted, and their repair in steps that are safe beside running workers.

`find_defects` is a few statements, each a transaction of its own. A repair finds at most 500 jobs by reading, then
locks just these, in ascending order, and mends those that still have the defect: SQLite's one writer waits for no scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Table,
    and_,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    text,
)

from schemas.job import FINAL_STATES, OPEN_STATES, JobState
from worker.storage import doctor_repairs as repairs
from worker.storage.cleaning import clean_text
from worker.storage.due import fetch_mark_bound, unmark_published_before
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway, describe, is_damaged
from worker.storage.tables import (
    IDLE,
    MAX_ROWS,
    attempts,
    batches,
    details,
    failure_bodies,
    is_in,
    is_published,
    jobs,
    requests,
    results,
    usage,
    wants,
    workers,
)
from worker.storage.wants import IS_LEFT_BEHIND
from worker.storage.workers import end_worker, rescue_jobs

MOST_EXAMPLES = 5
SILENT_AFTER_LEASES = 10
_FAR_MS = 30 * 86_400_000
_INTERRUPTED_AFTER_MS = 600_000


@dataclass(frozen=True, slots=True)
class AuditTime:
    """The moment at which a ledger is examined, by this machine's clock, in milliseconds since 1970.

    What was published before `published_before_ms` is overdue.
    """

    now_ms: int
    published_before_ms: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect: how many have it, and up to five ids (or names, or places) of them. Never content."""

    name: str
    count: int
    examples: tuple[str, ...]
    is_repairable: bool = False


@dataclass(frozen=True, slots=True)
class UnendedWorker:
    """A worker that has not ended, or that has open claims.

    `endpoint` and `sequence` are None where its row is gone. It `is_stalled` where it has not beaten for ten leases,
    ended a lease ago, or has no row, by this machine's clock. That is told to people, and proves no death.
    """

    worker_id: str
    endpoint: str | None
    sequence: int | None
    is_stalled: bool


@dataclass(frozen=True, slots=True)
class _Check:
    """Jobs that have a defect. A plain one asks nothing of other tables: all such are counted in one scan."""

    where: Callable[[AuditTime], ColumnElement[bool]]
    mend: repairs.Mend | None = None
    is_plain: bool = True


def check_file(ledger: Ledger) -> Finding | None:
    """What SQLite finds wrong with its file; None where it finds nothing, and for a PostgreSQL."""
    if ledger.is_postgresql:
        return None
    try:
        with ledger.read() as connection:
            words = list(connection.execute(text(f"PRAGMA quick_check({MOST_EXAMPLES})")).scalars())
    except DatabaseAway as exc:
        if not is_damaged(exc.__cause__):
            raise
        words = [describe(exc.__cause__ or exc)]
    if words == ["ok"]:
        return None
    return Finding("damaged_file", len(words), tuple(clean_text(word) or "" for word in words))


def find_defects(ledger: Ledger, at: AuditTime) -> list[Finding]:
    """The defects of jobs, of what belongs to them, and of batches. Raises DatabaseAway or NotMigrated."""
    plain = [name for name, check in _CHECKS.items() if check.is_plain]
    counted = [func.count().filter(_CHECKS[name].where(at)).label(name) for name in plain]
    with ledger.read() as connection:
        row = connection.execute(select(*counted).select_from(jobs)).one()
    counts: dict[str, int] = dict(zip(plain, row, strict=True))
    found = []
    for name, check in _CHECKS.items():
        having = select(jobs.c.id).where(check.where(at))
        with ledger.read() as connection:
            if name not in counts:
                counts[name] = connection.execute(
                    select(func.count()).select_from(having.subquery())
                ).scalar_one()
            if counts[name]:
                some = tuple(connection.execute(having.limit(MOST_EXAMPLES)).scalars())
                found.append(Finding(name, counts[name], some, check.mend is not None))
    for name, find in _FINDERS.items():
        with ledger.read() as connection:
            named = find(connection, at)
        if named:
            # The largest first: that is where a person begins.
            largest = sorted(named, key=lambda one: (-named[one], one))[:MOST_EXAMPLES]
            found.append(Finding(name, sum(named.values()), tuple(largest)))
    return found


def mend_defects(ledger: Ledger, at: AuditTime, names: Iterable[str]) -> None:
    """Repairs those of the named defects that have a repair, in the order of `_CHECKS`: one may uncover the next."""
    wanted = set(names)
    for name, check in _CHECKS.items():
        if name in wanted and check.mend is not None:
            after = ""
            while ids := _find_some(ledger, check.where(at), after=after):
                ledger.run(
                    partial(_mend_some, ids=ids, where=check.where(at), mend=check.mend, now_ms=at.now_ms)
                )
                after = ids[-1]


def fetch_unended_workers(connection: Connection, *, now_ms: int) -> list[UnendedWorker]:
    """The workers that have not ended or that have open claims, by id."""
    holders = set(
        connection.execute(
            select(jobs.c.worker_id).where(is_in(JobState.RUNNING), jobs.c.worker_id.is_not(None)).distinct()
        ).scalars()
    )
    known = connection.execute(
        select(workers).where(or_(workers.c.ended_at_ms.is_(None), workers.c.id.in_(sorted(holders))))
    )
    found = []
    for row in known:
        holders.discard(row.id)
        if row.ended_at_ms is None:
            is_stalled = row.beat_at_ms < now_ms - SILENT_AFTER_LEASES * row.lease_ms
        else:
            # A worker that stops marks its end first, and records its last calls for a moment after it.
            is_stalled = row.ended_at_ms < now_ms - row.lease_ms
        found.append(UnendedWorker(row.id, row.endpoint, row.sequence, is_stalled))
    found += [UnendedWorker(id_, None, None, is_stalled=True) for id_ in holders]
    return sorted(found, key=lambda one: one.worker_id)


def rescue_worker(ledger: Ledger, worker: UnendedWorker, *, max_solo_losses: int, now_ms: int) -> None:
    """Rescues the jobs of a dead worker, as other workers do; changes nothing if it has beaten since."""

    def rescue(connection: Connection) -> bool:
        sequence = connection.execute(
            select(workers.c.sequence).where(workers.c.id == worker.worker_id).with_for_update()
        ).scalar()
        if sequence != worker.sequence:
            return False
        if rescue_jobs(connection, worker.worker_id, max_solo_losses=max_solo_losses, now_ms=now_ms):
            return True
        end_worker(connection, worker.worker_id, reason="lost", now_ms=now_ms)
        return False

    while ledger.run(rescue):
        pass
    if worker.endpoint is not None:
        # The hints that it had taken are lost with it. All are published again; a claim makes duplicates harmless.
        with ledger.read() as connection:
            before_ms = fetch_mark_bound(connection, worker.endpoint, now_ms=now_ms)
        unmark = partial(unmark_published_before, endpoint=worker.endpoint, before_ms=before_ms)
        while ledger.run(unmark):
            pass


def count_all_published(connection: Connection) -> int:
    """Jobs of all endpoints that were handed to the broker and are not claimed yet."""
    return int(connection.execute(select(func.count()).select_from(jobs).where(is_published())).scalar_one())


def fetch_published_endpoints(connection: Connection) -> list[str]:
    """The endpoints of jobs that were handed to the broker and are not claimed yet, sorted."""
    return sorted(connection.execute(select(jobs.c.endpoint).where(is_published()).distinct()).scalars())


def fetch_live_endpoints(connection: Connection, *, now_ms: int) -> list[str]:
    """The endpoints that a worker serves, sorted: one that has not ended and has beaten within ten leases."""
    rows = connection.execute(select(workers.c.endpoint).where(_is_live(now_ms)).distinct())
    return sorted(rows.scalars())


def _find_some(ledger: Ledger, where: ColumnElement[bool], *, after: str) -> list[str]:
    having = select(jobs.c.id).where(where, jobs.c.id > after).order_by(jobs.c.id).limit(MAX_ROWS)
    with ledger.read() as connection:
        return list(connection.execute(having).scalars())


def _mend_some(
    connection: Connection, *, ids: list[str], where: ColumnElement[bool], mend: repairs.Mend, now_ms: int
) -> None:
    still = select(jobs.c.id).where(jobs.c.id.in_(ids), where).order_by(jobs.c.id)
    locked = list(connection.execute(still.with_for_update(skip_locked=True)).scalars())
    if locked:
        mend(connection, locked, now_ms)


def _is_live(now_ms: int) -> ColumnElement[bool]:
    # As bigint: PostgreSQL would take the product, and this time, for integers of 32 bits.
    leases = literal(SILENT_AFTER_LEASES, BigInteger) * workers.c.lease_ms
    recent = workers.c.beat_at_ms >= literal(now_ms, BigInteger) - leases
    return workers.c.ended_at_ms.is_(None) & recent


def _is_overdue(at: AuditTime) -> ColumnElement[bool]:
    is_served = exists().where(workers.c.endpoint == jobs.c.endpoint, _is_live(at.now_ms))
    # As far ahead of this clock as behind it: a clock was wrong, and no relay would come to it for as long.
    ahead_ms = 2 * at.now_ms - at.published_before_ms
    is_far = or_(jobs.c.published_at_ms < at.published_before_ms, jobs.c.published_at_ms > ahead_ms)
    return is_published() & is_far & is_served


_HAS_RESULT = exists().where(results.c.job_id == jobs.c.id)
_IS_COUNTED = exists().where(
    usage.c.job_id == results.c.job_id, usage.c.number == results.c.number, usage.c.is_used
)
_IS_AHEAD = or_(attempts.c.number > jobs.c.claims, attempts.c.generation > jobs.c.generation)
_UNCLAIMED = (JobState.QUEUED, JobState.WAITING, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)
_OPEN = tuple(state for state in JobState if state in OPEN_STATES)
_FINAL = tuple(state for state in JobState if state in FINAL_STATES)

# In the order of repair. First what must not be called again: a job that has its result. Then the counts, since the
# next claim of a job that is let go must not overwrite an attempt. Then the claims: what they let go may be published
# by the last. A result that counts needs its usage; the times come after the moves that set them.
_CHECKS: Mapping[str, _Check] = {
    "unknown_state": _Check(lambda _: not_(is_in(*JobState))),
    "result_without_success": _Check(
        lambda _: not_(is_in(JobState.SUCCEEDED)) & _HAS_RESULT, repairs.succeed, is_plain=False
    ),
    "claims_behind_attempts": _Check(
        lambda _: exists().where(attempts.c.job_id == jobs.c.id, _IS_AHEAD),
        repairs.raise_counts,
        is_plain=False,
    ),
    "half_a_claim": _Check(
        lambda _: is_in(JobState.RUNNING) & or_(jobs.c.claim_token.is_(None), jobs.c.worker_id.is_(None)),
        repairs.set_right_claims,
    ),
    "claim_left_over": _Check(
        lambda _: is_in(*_UNCLAIMED) & or_(jobs.c.claim_token.is_not(None), jobs.c.worker_id.is_not(None)),
        repairs.forget_claim,
    ),
    "success_without_result": _Check(lambda _: is_in(JobState.SUCCEEDED) & ~_HAS_RESULT, is_plain=False),
    "result_without_usage": _Check(
        lambda _: exists().where(results.c.job_id == jobs.c.id, ~_IS_COUNTED),
        repairs.count_tokens,
        is_plain=False,
    ),
    "usage_without_result": _Check(
        # Of jobs that are there: usage outlives what was pruned.
        lambda _: exists().where(
            usage.c.job_id == jobs.c.id, usage.c.is_used, repairs.IS_OF_THIS_JOB, ~repairs.IS_BEHIND_USAGE
        ),
        repairs.unuse,
        is_plain=False,
    ),
    "request_missing": _Check(
        lambda _: is_in(*IDLE) & ~exists().where(requests.c.job_id == jobs.c.id),
        repairs.fail_as_invalid,
        is_plain=False,
    ),
    "ended_without_time": _Check(lambda _: is_in(*_FINAL) & jobs.c.ended_at_ms.is_(None), repairs.date_end),
    "open_with_end": _Check(lambda _: is_in(*_OPEN) & jobs.c.ended_at_ms.is_not(None), repairs.forget_end),
    "waiting_without_time": _Check(
        lambda _: is_in(JobState.WAITING) & jobs.c.not_before_ms.is_(None), repairs.make_due
    ),
    "waiting_for_long": _Check(
        lambda at: is_in(JobState.WAITING) & (jobs.c.not_before_ms > at.now_ms + _FAR_MS)
    ),
    "left_behind": _Check(lambda _: IS_LEFT_BEHIND, repairs.find_homes, is_plain=False),
    "published_long_ago": _Check(_is_overdue, repairs.publish_again, is_plain=False),
}


def _find_strays(connection: Connection, _: AuditTime) -> dict[str, int]:
    """Rows of jobs that are not there, by table. Usage is not meant: it outlives what was pruned."""
    found = {}
    for table in (requests, details, attempts, results, failure_bodies, wants):
        count = connection.execute(_count_strays(table)).scalar_one()
        if count:
            found[table.name] = count
    return found


def _count_strays(table: Table) -> Any:
    return select(func.count()).select_from(table).where(~exists().where(jobs.c.id == table.c.job_id))


def _find_unserved(connection: Connection, at: AuditTime) -> dict[str, int]:
    """Jobs that wait to be done, by endpoint, of endpoints that no live worker serves; not those of a stopped run."""
    served = fetch_live_endpoints(connection, now_ms=at.now_ms)
    held = select(batches.c.id).where(batches.c.held_at_ms.is_not(None))
    found: dict[str, int] = {}
    # Each has an index of its own, with the endpoint in front.
    ready = is_in(JobState.QUEUED) & jobs.c.published_at_ms.is_(None)
    for condition in (ready, is_published(), is_in(JobState.WAITING)):
        counts = connection.execute(
            select(jobs.c.endpoint, func.count())
            .where(condition, jobs.c.batch_id.not_in(held))
            .group_by(jobs.c.endpoint)
        )
        for endpoint, count in counts:
            if endpoint not in served:
                found[endpoint] = found.get(endpoint, 0) + count
    return found


def _find_interrupted(connection: Connection, at: AuditTime) -> dict[str, int]:
    """Batches whose submission has not ended, and has written nothing for ten minutes; each counts one."""
    before_ms = at.now_ms - _INTERRUPTED_AFTER_MS
    open_since = connection.execute(
        select(batches.c.id).where(batches.c.submitted_at_ms.is_(None), batches.c.created_at_ms < before_ms)
    ).scalars()
    found = {}
    for batch_id in open_since.all():
        latest = connection.execute(
            select(jobs.c.created_at_ms)
            .where(jobs.c.batch_id == batch_id)
            .order_by(jobs.c.position.desc(), jobs.c.id.desc())
            .limit(1)
        ).scalar()
        if latest is None or latest < before_ms:
            found[batch_id] = 1
    return found


def _find_held(connection: Connection, _: AuditTime) -> dict[str, int]:
    """Batches that are held and have jobs to be done; each counts one."""
    is_open = exists().where(and_(jobs.c.batch_id == batches.c.id, is_in(*_OPEN)))
    rows = connection.execute(select(batches.c.id).where(batches.c.held_at_ms.is_not(None), is_open))
    return dict.fromkeys(rows.scalars(), 1)


_FINDERS: Mapping[str, Callable[[Connection, AuditTime], dict[str, int]]] = {
    "stray_rows": _find_strays,
    "unserved": _find_unserved,
    "interrupted_submission": _find_interrupted,
    "held_batch": _find_held,
}
