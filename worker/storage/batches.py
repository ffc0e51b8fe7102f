"""Batches: made once for an idempotency key, counted from their jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from schemas.job import JobState, derive_batch_status
from worker.storage.tables import batches, insert_or_ignore, jobs, usage


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
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """A batch with the counts of its jobs and the tokens of all its answered attempts."""

    batch: Batch
    counts: Mapping[JobState, int]
    failures: Mapping[str, int]  # failed jobs by kind
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
            "details": {},
        }
        for batch_id in sorted(set(batch_ids))
    ]
    if rows:
        connection.execute(insert_or_ignore(connection, batches), rows)


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
    """The batch with this id, or None."""
    row = connection.execute(select(batches).where(batches.c.id == batch_id)).one_or_none()
    return None if row is None else _batch(row)


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
    return BatchStatus(
        batch=batch,
        counts=count_states(connection, batch.id),
        failures={kind or "unknown": count for kind, count in failures},
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
        details=row.details,
    )
