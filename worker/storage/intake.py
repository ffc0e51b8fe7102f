"""Intake: requests become rows, thousands a statement, once for each idempotency key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select

from schemas.job import JobState
from worker.storage.cleaning import clean_text
from worker.storage.tables import insert_or_ignore, jobs, requests


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated request on its way into the ledger."""

    id: str
    body: str  # the JSON to send
    model: str
    request_hash: str
    endpoint: str
    idempotency_key: str | None = None
    batch_id: str = ""
    position: int = 0
    custom_id: str | None = None
    source_key: str | None = None
    priority: int = 0
    is_bulk: bool = False
    max_attempts: int | None = None
    expires_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class KnownJob:
    """A job that is in the ledger: what was found under an idempotency key."""

    id: str
    state: JobState
    is_new: bool


_BY_KEY = select(jobs.c.id, jobs.c.state, jobs.c.idempotency_key).where(
    jobs.c.idempotency_key.in_(bindparam("keys", expanding=True))
)


def insert_jobs(
    connection: Connection, new: Sequence[NewJob], *, now_ms: int, published_at_ms: int | None = None
) -> list[KnownJob]:
    """The jobs behind `new`, in the order given: new ones, or those that hold the same key already.

    The same key twice within `new` is one job as well. `published_at_ms` marks lone jobs that the caller
    publishes itself right after the commit.
    """
    unkeyed = [job for job in new if job.idempotency_key is None]
    keyed: dict[str, NewJob] = {}
    for job in new:
        if job.idempotency_key is not None:
            keyed.setdefault(job.idempotency_key, job)
    wanted = sorted([*unkeyed, *keyed.values()], key=lambda job: job.idempotency_key or "")
    if not wanted:
        return []
    connection.execute(
        insert_or_ignore(connection, jobs),
        [_job_values(job, now_ms=now_ms, published_at_ms=published_at_ms) for job in wanted],
    )
    found: dict[str, tuple[str, str]] = {}
    keys = list(keyed)
    for start in range(0, len(keys), 500):
        for row in connection.execute(_BY_KEY, {"keys": keys[start : start + 500]}):
            found[row.idempotency_key] = (row.id, row.state)
    fresh = {job.id for job in unkeyed}
    fresh.update(job.id for key, job in keyed.items() if found[key][0] == job.id)
    bodies = [{"job_id": job.id, "body": job.body} for job in wanted if job.id in fresh]
    if bodies:
        connection.execute(insert_or_ignore(connection, requests), bodies)
    known = []
    for job in new:
        id_, state = (job.id, "queued") if job.idempotency_key is None else found[job.idempotency_key]
        known.append(KnownJob(id=id_, state=JobState(state), is_new=id_ == job.id and id_ in fresh))
    return known


def find_by_keys(connection: Connection, keys: Sequence[str]) -> dict[str, KnownJob]:
    """The jobs that hold these idempotency keys (at most 500), by key."""
    return {
        row.idempotency_key: KnownJob(id=row.id, state=JobState(row.state), is_new=False)
        for row in connection.execute(_BY_KEY, {"keys": list(keys)})
    }


def _job_values(job: NewJob, *, now_ms: int, published_at_ms: int | None) -> dict[str, object]:
    return {
        "id": job.id,
        "idempotency_key": job.idempotency_key,
        "batch_id": job.batch_id,
        "position": job.position,
        "custom_id": clean_text(job.custom_id),
        "source_key": clean_text(job.source_key),
        "endpoint": job.endpoint,
        "model": clean_text(job.model),
        "request_hash": job.request_hash,
        "state": JobState.QUEUED.value,
        "priority": job.priority,
        "is_bulk": job.is_bulk,
        "max_attempts": job.max_attempts,
        "expires_at_ms": job.expires_at_ms,
        "published_at_ms": published_at_ms,
        "is_cancel_requested": False,
        "generation": 1,
        "claims": 0,
        "attempts": 0,
        "losses": 0,
        "solo_losses": 0,
        "created_at_ms": now_ms,
    }
