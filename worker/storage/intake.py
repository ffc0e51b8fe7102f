"""Intake: requests become rows, thousands a statement, once for each idempotency key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, select

from schemas.failure import FailureKind
from schemas.job import JobState
from worker.storage.batches import CLOSED_BATCH, ensure_open_batches, fetch_closed
from worker.storage.bulk import insert_columns
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
    columns = _job_columns(wanted, now_ms=now_ms, published_at_ms=published_at_ms)
    if insert_columns(connection, jobs, columns) == len(new):
        _insert_bodies(connection, wanted)
        return [KnownJob(id=job.id, state=_first_state(job), is_new=True) for job in new]
    holders, fresh = _find_holders(connection, wanted)
    _insert_bodies(connection, fresh)
    fresh_ids = {job.id for job in fresh}
    known = []
    for job in new:
        kept = job if job.idempotency_key is None else keyed[job.idempotency_key]
        id_, state = holders[kept.id]
        known.append(KnownJob(id=id_, state=state, is_new=id_ == job.id and id_ in fresh_ids))
    return known


def _find_holders(
    connection: Connection, wanted: Sequence[NewJob]
) -> tuple[dict[str, tuple[str, JobState]], list[NewJob]]:
    """Id and state of the job that is there for each of `wanted`, by the wanted one's id; and the new ones."""
    keys = [job.idempotency_key for job in wanted if job.idempotency_key is not None]
    found: dict[str, tuple[str, JobState]] = {}
    for start in range(0, len(keys), 500):
        for row in connection.execute(_BY_KEY, {"keys": keys[start : start + 500]}):
            found[row.idempotency_key] = (row.id, JobState(row.state))
    holders = {}
    fresh = []
    for job in wanted:
        if job.idempotency_key is None:
            holders[job.id] = (job.id, _first_state(job))
            fresh.append(job)
        elif job.idempotency_key not in found:  # the id is taken by a job with another key: it is the job
            holders[job.id] = (job.id, _state_of(connection, job.id))
        else:
            holders[job.id] = found[job.idempotency_key]
            if holders[job.id][0] == job.id:
                fresh.append(job)
    return holders, fresh


def adopt_jobs(connection: Connection, new: Sequence[NewJob], *, now_ms: int) -> None:
    """Writes down jobs that came in their messages, and the batches that they name.

    Of an id that has a row nothing is written: the row is the job. A job that names a batch of `run` or `submit` is
    refused, or it would be among the results of somebody else's file.
    """
    if not new:
        return
    closed = fetch_closed(connection, [job.batch_id for job in new if job.batch_id])
    sound = [refuse(job, CLOSED_BATCH) if job.batch_id in closed else job for job in new]
    known = insert_jobs(connection, sound, now_ms=now_ms)
    for endpoint in {job.endpoint for job in sound}:
        named = [
            job.batch_id
            for job, found in zip(sound, known, strict=True)
            if job.batch_id and job.endpoint == endpoint and found.is_new
        ]
        ensure_open_batches(connection, named, endpoint=endpoint, now_ms=now_ms)


def refuse(job: NewJob, why: str) -> NewJob:
    """The row that a message ends as which cannot be adopted: its id, its state and a sentence, and no batch."""
    return replace(
        job,
        batch_id="",
        not_before_ms=None,
        ended_as=job.ended_as or JobState.FAILED,
        failure_message=why,
    )


def make_bare(job: NewJob) -> NewJob:
    """The last resort, where the database takes no row of `job` as it is: nothing of the message but its id."""
    return NewJob(
        id=job.id,
        body="null",
        model="unknown",
        request_hash="",
        endpoint=job.endpoint,
        idempotency_key=job.idempotency_key,
        ended_as=job.ended_as or JobState.FAILED,
        failure_message="the message holds something that the database does not take",
    )


def find_by_keys(connection: Connection, keys: Sequence[str]) -> dict[str, KnownJob]:
    """The jobs that hold these idempotency keys (at most 500), by key."""
    return {
        row.idempotency_key: KnownJob(id=row.id, state=JobState(row.state), is_new=False)
        for row in connection.execute(_BY_KEY, {"keys": list(keys)})
    }


def _insert_bodies(connection: Connection, new: Sequence[NewJob]) -> None:
    if not new:
        return
    bodies = {"job_id": [job.id for job in new], "body": [job.body for job in new]}
    insert_columns(connection, requests, bodies)
    extras = [
        {"job_id": job.id, "user_metadata": job.user_metadata, "envelope": job.envelope}
        for job in new
        if job.user_metadata or job.envelope
    ]
    if extras:
        connection.execute(insert_or_ignore(connection, details), extras)


def _state_of(connection: Connection, job_id: str) -> JobState:
    return JobState(connection.execute(select(jobs.c.state).where(jobs.c.id == job_id)).scalar_one())


def _job_columns(new: Sequence[NewJob], *, now_ms: int, published_at_ms: int | None) -> dict[str, list[Any]]:
    states = [_first_state(job) for job in new]
    failed = FailureKind.INVALID_REQUEST.value
    return {
        "id": [job.id for job in new],
        "idempotency_key": [job.idempotency_key for job in new],
        "batch_id": [job.batch_id for job in new],
        "position": [job.position for job in new],
        "custom_id": [clean_text(job.custom_id) for job in new],
        "source_key": [clean_text(job.source_key) for job in new],
        "endpoint": [job.endpoint for job in new],
        "model": [clean_text(job.model) for job in new],
        "request_hash": [job.request_hash for job in new],
        "state": [state.value for state in states],
        "not_before_ms": [job.not_before_ms for job in new],
        "ended_at_ms": [None if job.ended_as is None else now_ms for job in new],
        "failure_kind": [failed if state is JobState.FAILED else None for state in states],
        "failure_message": [clean_text(job.failure_message) for job in new],
        "priority": [job.priority for job in new],
        "is_bulk": [job.is_bulk for job in new],
        "max_attempts": [job.max_attempts for job in new],
        "expires_at_ms": [job.expires_at_ms for job in new],
        "published_at_ms": [published_at_ms if state is JobState.QUEUED else None for state in states],
        "created_at_ms": [now_ms] * len(new),
        **{name: [value] * len(new) for name, value in _UNTOUCHED.items()},
    }


_UNTOUCHED = {
    "is_cancel_requested": False,
    "generation": 1,
    "claims": 0,
    "attempts": 0,
    "bad_responses": 0,
    "losses": 0,
    "solo_losses": 0,
}


def _first_state(job: NewJob) -> JobState:
    if job.ended_as is not None:
        return job.ended_as
    return JobState.QUEUED if job.not_before_ms is None else JobState.WAITING
