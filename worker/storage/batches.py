"""Batches: made once for an idempotency key, counted from their jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, exists, func, select, update

from schemas.job import OPEN_STATES, JobState, derive_batch_status
from worker.storage.tables import batches, insert_or_ignore, is_in, is_published, jobs, usage
from worker.storage.window import unmark_published

_SHORTEST_PREFIX = 12


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it was made. `submitted_at_ms` is None while its rows are still being written down."""

    id: str
    kind: str
    label: str
    endpoint: str
    total: int
    created_at_ms: int
    submitted_at_ms: int | None
    held_at_ms: int | None
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """A batch with the counts of its jobs and the tokens of all its answered attempts."""

    batch: Batch
    counts: Mapping[JobState, int]
    failures: Mapping[str, int]  # failed jobs by kind
    finish_reasons: Mapping[str, int]  # results by finish_reason, those out of the ordinary only
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @property
    def status(self) -> str:
        return derive_batch_status(dict(self.counts), is_submitted=self.batch.submitted_at_ms is not None)


def make_batch(
    connection: Connection,
    batch_id: str,
    *,
    kind: str,
    label: str,
    endpoint: str,
    idempotency_key: str | None,
    details: Mapping[str, Any] | None = None,
    now_ms: int,
) -> Batch:
    """The batch with this idempotency key: a new one, or the one that holds it already."""
    connection.execute(
        insert_or_ignore(connection, batches),
        {
            "id": batch_id,
            "idempotency_key": idempotency_key,
            "kind": kind,
            "label": label,
            "endpoint": endpoint,
            "total": 0,
            "created_at_ms": now_ms,
            "submitted_at_ms": None,
            "held_at_ms": None,
            "details": dict(details or {}),
        },
    )
    chosen = (
        batches.c.id == batch_id if idempotency_key is None else batches.c.idempotency_key == idempotency_key
    )
    return _batch(connection.execute(select(batches).where(chosen)).one())


def ensure_open_batches(
    connection: Connection, batch_ids: Iterable[str], *, endpoint: str, now_ms: int
) -> None:
    """Makes those of `batch_ids` that are missing, as batches that jobs may join at any time."""
    rows: list[dict[str, object]] = [
        {
            "id": batch_id,
            "idempotency_key": None,
            "kind": "tasks",
            "label": batch_id,
            "endpoint": endpoint,
            "total": 0,
            "created_at_ms": now_ms,
            "submitted_at_ms": now_ms,
            "held_at_ms": None,
            "details": {},
        }
        for batch_id in sorted(set(batch_ids))
    ]
    if rows:
        connection.execute(insert_or_ignore(connection, batches), rows)


def hold_batch(connection: Connection, batch_id: str, *, now_ms: int) -> None:
    """Keeps the batch's jobs from being relayed and claimed; calls in flight end and are kept."""
    connection.execute(
        update(batches)
        .where(batches.c.id == batch_id, batches.c.held_at_ms.is_(None))
        .values(held_at_ms=now_ms)
    )


def resume_batch(connection: Connection, batch_id: str) -> None:
    """Lets the batch's jobs go on. Messages that came meanwhile were dropped, so all are published again."""
    held = connection.execute(
        update(batches)
        .where(batches.c.id == batch_id, batches.c.held_at_ms.is_not(None))
        .values(held_at_ms=None)
    )
    if held.rowcount:
        published = select(jobs.c.id).where(is_published(), jobs.c.batch_id == batch_id)
        unmark_published(connection, sorted(connection.execute(published).scalars()))


def fetch_held(connection: Connection, endpoint: str) -> list[str]:
    """Ids of the endpoint's batches that are held."""
    return list(
        connection.execute(
            select(batches.c.id).where(batches.c.held_at_ms.is_not(None), batches.c.endpoint == endpoint)
        ).scalars()
    )


def fetch_open_runs(connection: Connection, *, endpoint: str, home: str) -> list[Batch]:
    """The runs of this home that are not held and have jobs to be done, oldest first."""
    is_open = exists().where(jobs.c.batch_id == batches.c.id, is_in(*OPEN_STATES)).correlate(batches)
    rows = connection.execute(
        select(batches)
        .where(
            batches.c.kind == "run", batches.c.endpoint == endpoint, batches.c.held_at_ms.is_(None), is_open
        )
        .order_by(batches.c.created_at_ms)
    )
    return [batch for batch in map(_batch, rows) if batch.details.get("home") == home]


def take_over(connection: Connection, job_ids: Sequence[str], *, batch_id: str) -> None:
    """Moves those of `job_ids` (at most 500) that wait to be done into this batch, from whichever made them."""
    connection.execute(
        update(jobs)
        .where(
            jobs.c.id.in_(sorted(job_ids)),
            jobs.c.batch_id != batch_id,
            is_in(JobState.QUEUED, JobState.WAITING),
        )
        .values(batch_id=batch_id, published_at_ms=None)
    )


def finish_submission(connection: Connection, batch_id: str, *, now_ms: int) -> int:
    """The batch's number of jobs, now that all its rows are written down."""
    total = int(
        connection.execute(
            select(func.count()).select_from(jobs).where(jobs.c.batch_id == batch_id)
        ).scalar_one()
    )
    connection.execute(
        update(batches).where(batches.c.id == batch_id).values(total=total, submitted_at_ms=now_ms)
    )
    return total


def fetch_batch(connection: Connection, batch_id: str) -> Batch | None:
    """The batch with this id, or the only one whose id begins with it; None if there is none or several.

    A beginning counts from 12 characters on: `batch_` alone names nothing.
    """
    chosen = batches.c.id == batch_id
    if len(batch_id) >= _SHORTEST_PREFIX:
        chosen |= batches.c.id.startswith(batch_id, autoescape=True)
    rows = connection.execute(select(batches).where(chosen).order_by(batches.c.id != batch_id).limit(2)).all()
    if rows and (len(rows) == 1 or rows[0].id == batch_id):
        return _batch(rows[0])
    return None


def fetch_batches(connection: Connection, *, limit: int = 20) -> list[Batch]:
    """Newest first, at most `limit`."""
    rows = connection.execute(
        select(batches).order_by(batches.c.created_at_ms.desc(), batches.c.id.desc()).limit(limit)
    )
    return [_batch(row) for row in rows]


def count_states(connection: Connection, batch_id: str | None = None) -> dict[JobState, int]:
    """Jobs by state, of one batch or of the whole ledger; states without jobs are absent."""
    statement = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    if batch_id is not None:
        statement = statement.where(jobs.c.batch_id == batch_id)
    return {JobState(state): count for state, count in connection.execute(statement)}


def fetch_status(connection: Connection, batch: Batch) -> BatchStatus:
    """Where the batch stands."""
    failures = connection.execute(
        select(jobs.c.failure_kind, func.count())
        .where(jobs.c.batch_id == batch.id, jobs.c.state == "failed")
        .group_by(jobs.c.failure_kind)
        .order_by(func.count().desc())
    )
    tokens = connection.execute(
        select(
            func.coalesce(func.sum(usage.c.prompt_tokens), 0),
            func.coalesce(func.sum(usage.c.completion_tokens), 0),
            func.coalesce(func.sum(usage.c.total_tokens), 0),
        ).where(usage.c.batch_id == batch.id)
    ).one()
    odd_ends = connection.execute(
        select(usage.c.odd_finish_reason, func.count())
        .where(usage.c.batch_id == batch.id, usage.c.odd_finish_reason.is_not(None))
        .group_by(usage.c.odd_finish_reason)
        .order_by(func.count().desc(), usage.c.odd_finish_reason)
    )
    return BatchStatus(
        batch=batch,
        counts=count_states(connection, batch.id),
        failures={kind or "unknown": count for kind, count in failures},
        finish_reasons={str(reason): count for reason, count in odd_ends},
        prompt_tokens=int(tokens[0]),
        completion_tokens=int(tokens[1]),
        total_tokens=int(tokens[2]),
    )


def _batch(row: Row[Any]) -> Batch:
    return Batch(
        id=row.id,
        kind=row.kind,
        label=row.label,
        endpoint=row.endpoint,
        total=row.total,
        created_at_ms=row.created_at_ms,
        submitted_at_ms=row.submitted_at_ms,
        held_at_ms=row.held_at_ms,
        details=row.details,
    )
