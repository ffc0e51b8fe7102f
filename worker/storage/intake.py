"""Intake: requests become rows, thousands a statement, once for each idempotency key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, select

from schemas.failure import FailureKind
from schemas.job import JobState
from worker.storage.batches import ensure_open_batches
from worker.storage.cleaning import clean_text
from worker.storage.tables import details, insert_or_ignore, jobs, requests


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
    not_before_ms: int | None = None
    user_metadata: Mapping[str, Any] | None = None
    envelope: Mapping[str, Any] | None = None  # a Celery message's callbacks, kept for their delivery
    ended_as: JobState | None = None  # a message that is refused, revoked or expired ends where it arrives
    failure_message: str | None = None


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
    for key, job in keyed.items():
        if key not in found:  # the id is taken by a job with another key: the first one is the job
            found[key] = (job.id, _state_of(connection, job.id))
        elif found[key][0] == job.id:
            fresh.add(job.id)
    bodies = [{"job_id": job.id, "body": job.body} for job in wanted if job.id in fresh]
    if bodies:
        connection.execute(insert_or_ignore(connection, requests), bodies)
    extras = [
        _detail_values(job) for job in wanted if job.id in fresh and (job.user_metadata or job.envelope)
    ]
    if extras:
        connection.execute(insert_or_ignore(connection, details), extras)
    known = []
    for job in new:
        id_, state = (job.id, "queued") if job.idempotency_key is None else found[job.idempotency_key]
        known.append(KnownJob(id=id_, state=JobState(state), is_new=id_ == job.id and id_ in fresh))
    return known


def adopt_jobs(connection: Connection, new: Sequence[NewJob], *, now_ms: int) -> None:
    """Writes down jobs that came in their messages, and the batches that they name."""
    insert_jobs(connection, new, now_ms=now_ms)
    for endpoint in {job.endpoint for job in new}:
        named = [job.batch_id for job in new if job.batch_id and job.endpoint == endpoint]
        ensure_open_batches(connection, named, endpoint=endpoint, now_ms=now_ms)


def find_by_keys(connection: Connection, keys: Sequence[str]) -> dict[str, KnownJob]:
    """The jobs that hold these idempotency keys (at most 500), by key."""
    return {
        row.idempotency_key: KnownJob(id=row.id, state=JobState(row.state), is_new=False)
        for row in connection.execute(_BY_KEY, {"keys": list(keys)})
    }


def _state_of(connection: Connection, job_id: str) -> str:
    return str(connection.execute(select(jobs.c.state).where(jobs.c.id == job_id)).scalar_one())


def _detail_values(job: NewJob) -> dict[str, object]:
    return {"job_id": job.id, "user_metadata": job.user_metadata, "envelope": job.envelope}


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
        "state": _first_state(job).value,
        "not_before_ms": job.not_before_ms,
        "ended_at_ms": None if job.ended_as is None else now_ms,
        "failure_kind": FailureKind.INVALID_REQUEST.value if job.ended_as is JobState.FAILED else None,
        "failure_message": clean_text(job.failure_message),
        "priority": job.priority,
        "is_bulk": job.is_bulk,
        "max_attempts": job.max_attempts,
        "expires_at_ms": job.expires_at_ms,
        "published_at_ms": published_at_ms if _first_state(job) is JobState.QUEUED else None,
        "is_cancel_requested": False,
        "generation": 1,
        "claims": 0,
        "attempts": 0,
        "bad_responses": 0,
        "losses": 0,
        "solo_losses": 0,
        "created_at_ms": now_ms,
    }


def _first_state(job: NewJob) -> JobState:
    if job.ended_as is not None:
        return job.ended_as
    return JobState.QUEUED if job.not_before_ms is None else JobState.WAITING
