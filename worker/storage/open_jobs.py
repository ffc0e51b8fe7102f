"""Facts of the open jobs, for people: how many are queued, what others wait for, and which call is the oldest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, literal, select, union_all

from schemas.job import JobState
from worker.storage.batches import Batch
from worker.storage.calls import MAY_CALL, when_called
from worker.storage.tables import IDLE, batches, budgets, is_in, is_published, is_ready, jobs, wants, workers
from worker.storage.wants import OPEN


@dataclass(frozen=True, slots=True)
class Waits:
    """Waiting jobs of one endpoint with the same reason."""

    endpoint: str
    kind: str | None  # the kind of their last failure; None: a producer asked for a later time
    is_at_gate: bool
    jobs: int
    next_ms: int  # when the first of them is due


@dataclass(frozen=True, slots=True)
class OldestCall:
    """The running job whose call began first."""

    job_id: str
    endpoint: str
    started_at_ms: int
    hostname: str | None
    pid: int | None


@dataclass(frozen=True, slots=True)
class OpenJobs:
    """The open jobs of a ledger or of a batch.

    Jobs of held batches are counted in `held` only, those of other batches that wait at their budget in `at_budget`.
    """

    queued: Mapping[str, int]  # by endpoint
    waits: Sequence[Waits]  # by endpoint, then by when they are due
    held: Mapping[str, int]  # by endpoint
    oldest_call: OldestCall | None
    at_budget: Mapping[str, int] = field(default_factory=dict)  # by endpoint


def fetch_open_jobs(connection: Connection, batch: Batch | None = None) -> OpenJobs:
    """The open jobs of the whole ledger, or of one batch: all jobs that it wants, with any home batch."""
    held: dict[str, int] = {}
    if connection.execute(_HELD_HOMES.limit(1)).first() is not None:
        held = _count(connection, batch, is_in(*IDLE) & _IS_HELD)
    at_budget: dict[str, int] = {}
    is_free: ColumnElement[bool] = ~_IS_HELD
    if connection.execute(_HOMES_AT_BUDGET.limit(1)).first() is not None:
        at_budget = _count(connection, batch, is_in(*IDLE) & ~_IS_HELD & _IS_AT_BUDGET)
        is_free = ~_IS_HELD & ~_IS_AT_BUDGET
    # Each count reads an index only, for the whole ledger a partial one: no row of a large backlog is read.
    if batch is not None and batch.is_closed:
        queued = _count(connection, batch, is_in(JobState.QUEUED) & is_free)
    else:
        queued = _count(connection, batch, is_ready() & is_free, is_published() & is_free)
    return OpenJobs(
        queued=queued,
        waits=_fetch_waits(connection, batch, is_free),
        held=held,
        oldest_call=_fetch_oldest_call(connection, batch),
        at_budget=at_budget,
    )


_HELD_HOMES = select(batches.c.id).where(
    batches.c.held_at_ms.is_not(None),
    select(jobs.c.id).where(jobs.c.batch_id == batches.c.id, is_in(*OPEN)).correlate(batches).exists(),
)
_IS_HELD = jobs.c.batch_id.in_(_HELD_HOMES)
_HOMES_AT_BUDGET = select(budgets.c.batch_id).where(budgets.c.waits_since_ms.is_not(None))
_IS_AT_BUDGET = jobs.c.batch_id.in_(_HOMES_AT_BUDGET)


def _of(batch: Batch | None, statement: Select[Any]) -> list[Select[Any]]:
    """`statement` for the jobs of a batch, in two parts: its own as home batch, and those that it wants besides."""
    if batch is None:
        return [statement]
    elsewhere = select(wants.c.job_id).where(wants.c.batch_id == batch.id)
    return [
        statement.where(jobs.c.batch_id == batch.id),
        statement.where(jobs.c.id.in_(elsewhere), jobs.c.batch_id != batch.id),
    ]


def _count(connection: Connection, batch: Batch | None, *kinds: ColumnElement[bool]) -> dict[str, int]:
    """The number of jobs that match any of these conditions, by endpoint."""
    by_endpoint: Any  # a SELECT of an endpoint and a count
    if batch is not None and batch.is_closed:
        by_endpoint = select(literal(batch.endpoint), func.count())  # no index has both batch and endpoint
    else:
        by_endpoint = select(jobs.c.endpoint, func.count()).group_by(jobs.c.endpoint)
    parts = [part for kind in kinds for part in _of(batch, by_endpoint.where(kind))]
    found: Counter[str] = Counter()
    for endpoint, count in connection.execute(union_all(*parts)):
        found[endpoint] += count
    return dict(+found)  # a sum over no rows is 0


def _fetch_waits(connection: Connection, batch: Batch | None, is_free: ColumnElement[bool]) -> list[Waits]:
    is_at_gate = jobs.c.blocked_since_ms.is_not(None).label("is_at_gate")
    grouped = (
        select(jobs.c.endpoint, jobs.c.failure_kind, is_at_gate, func.count(), func.min(jobs.c.not_before_ms))
        .where(is_in(JobState.WAITING), is_free)
        .group_by(jobs.c.endpoint, jobs.c.failure_kind, is_at_gate)
    )
    found: dict[tuple[str, str | None, bool], Waits] = {}
    for endpoint, kind, gate, count, next_ms in connection.execute(union_all(*_of(batch, grouped))):
        key = (endpoint, kind, bool(gate))
        known = found.get(key, Waits(*key, jobs=0, next_ms=next_ms))
        found[key] = Waits(*key, jobs=known.jobs + count, next_ms=min(known.next_ms, next_ms))
    return sorted(found.values(), key=lambda one: (one.endpoint, one.next_ms))


def _fetch_oldest_call(connection: Connection, batch: Batch | None) -> OldestCall | None:
    columns = select(jobs.c.id, jobs.c.endpoint, jobs.c.claimed_at_ms, jobs.c.worker_id)
    is_called = is_in(JobState.RUNNING) & jobs.c.claimed_at_ms.is_not(None)
    running = union_all(*_of(batch, columns.where(is_called))).subquery()
    began_ms = when_called(running.c.claimed_at_ms).label("began_ms")
    row = connection.execute(
        select(running, began_ms, workers.c.hostname, workers.c.pid)
        .select_from(running.outerjoin(workers, workers.c.id == running.c.worker_id))
        .where(MAY_CALL)
        .order_by(began_ms, running.c.claimed_at_ms, running.c.id)
        .limit(1)
    ).first()
    return None if row is None else OldestCall(row.id, row.endpoint, row.began_ms, row.hostname, row.pid)
