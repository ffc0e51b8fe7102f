"""Writes requests as job rows, thousands per statement, once for each idempotency key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, select

from schemas.job import JobState
from worker.storage.batches import CLOSED_BATCH, ensure_open_batches, fetch_closed
from worker.storage.bulk import insert_columns
from worker.storage.cleaning import clean_text
from worker.storage.tables import AnyRow, details, insert_or_ignore, jobs, requests
from worker.storage.transitions import begin_jobs
from worker.storage.wants import Want, add_wants

LONGEST_REFUSED_BODY = 16 * 1024  # bytes; it is kept for people to read, and is not sent


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated request that is to be written into the ledger."""

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
    ended_as: JobState | None = None  # the final state of a message that is refused, revoked or expired
    failure_message: str | None = None


@dataclass(frozen=True, slots=True)
class KnownJob:
    """The job in the ledger for a `NewJob`: a new one, or the one that has the same idempotency key or id.

    `taken_for`: the request and endpoint of that job, if they are other ones than the `NewJob`'s; else None.
    """

    id: str
    state: JobState
    is_new: bool
    taken_for: str | None = None


_HELD = (
    jobs.c.id,
    jobs.c.state,
    jobs.c.batch_id,
    jobs.c.position,
    jobs.c.idempotency_key,
    jobs.c.request_hash,
    jobs.c.endpoint,
)
_BY_KEY = select(*_HELD).where(jobs.c.idempotency_key.in_(bindparam("keys", expanding=True)))


def insert_jobs(
    connection: Connection, new: Sequence[NewJob], *, now_ms: int, published_at_ms: int | None = None
) -> list[KnownJob]:
    """The jobs for `new`, in the order given: new ones, or those that have the same key already.

    The same key twice within `new` is one job, too. A job that exists is not changed: see `KnownJob.taken_for`. If it
    belongs to another batch, the batch of the `NewJob` wants it, too, with its own position and custom_id.
    `published_at_ms` marks lone jobs that the caller publishes itself right after the commit.
    """
    unkeyed = [job for job in new if job.idempotency_key is None]
    keyed: dict[str, NewJob] = {}
    for job in new:
        if job.idempotency_key is not None:
            keyed.setdefault(job.idempotency_key, job)
    wanted = sorted([*unkeyed, *keyed.values()], key=lambda job: job.idempotency_key or "")
    if not wanted:
        return []
    states = [_first_state(job) for job in wanted]
    columns = _job_columns(wanted, now_ms=now_ms)
    begun = begin_jobs(connection, columns, states, now_ms=now_ms, published_at_ms=published_at_ms)
    if begun == len(new):
        _insert_bodies(connection, wanted)
        return [KnownJob(id=job.id, state=_first_state(job), is_new=True) for job in new]
    holders, fresh = _find_holders(connection, wanted)
    _insert_bodies(connection, fresh)
    fresh_ids = {job.id for job in fresh}
    known: list[KnownJob] = []
    beside: list[Want] = []
    for job in new:
        kept = job if job.idempotency_key is None else keyed[job.idempotency_key]
        holder = holders[kept.id]
        is_new = holder.id == job.id and holder.id in fresh_ids
        taken_for = None if holder.is_for(job) else describe_request(holder.request_hash, holder.endpoint)
        known.append(KnownJob(holder.id, holder.state, is_new, taken_for))
        # A message that is delivered again, with the id of its job, adds no further want.
        is_home = (job.batch_id, job.position) == (holder.batch_id, holder.position)
        if job.batch_id and taken_for is None and holder.id != job.id and not is_home:
            beside.append(Want(job.batch_id, job.position, holder.id, clean_text(job.custom_id)))
    add_wants(connection, beside)
    return known


@dataclass(frozen=True, slots=True)
class _Holder:
    """The job that has an idempotency key or an id, and its home batch."""

    id: str
    state: JobState
    batch_id: str
    position: int
    request_hash: str
    endpoint: str

    def is_for(self, job: NewJob) -> bool:
        return (self.request_hash, self.endpoint) == (job.request_hash, job.endpoint)


def _find_holders(
    connection: Connection, wanted: Sequence[NewJob]
) -> tuple[dict[str, _Holder], list[NewJob]]:
    """The existing jobs for `wanted`, by the id of the wanted one; and those of `wanted` that are new."""
    keys = [job.idempotency_key for job in wanted if job.idempotency_key is not None]
    found: dict[str, _Holder] = {}
    for start in range(0, len(keys), 500):
        for row in connection.execute(_BY_KEY, {"keys": keys[start : start + 500]}):
            found[row.idempotency_key] = _holder(row)
    holders: dict[str, _Holder] = {}
    fresh = []
    for job in wanted:
        if job.idempotency_key is None:
            holders[job.id] = _Holder(
                job.id, _first_state(job), job.batch_id, job.position, job.request_hash, job.endpoint
            )
            fresh.append(job)
        elif job.idempotency_key not in found:  # the id is taken by a job with another key: it is the job
            holders[job.id] = _holder(connection.execute(select(*_HELD).where(jobs.c.id == job.id)).one())
        else:
            holders[job.id] = holder = found[job.idempotency_key]
            # Written just now, or by a COMMIT whose answer was lost.
            if holder.id == job.id and holder.is_for(job):
                fresh.append(job)
    return holders, fresh


def _holder(row: AnyRow) -> _Holder:
    return _Holder(row.id, JobState(row.state), row.batch_id, row.position, row.request_hash, row.endpoint)


def describe_request(request_hash: str, endpoint: str) -> str:
    """Describes a request in a message, without quoting it."""
    return f"SHA-256 {request_hash[:12]}… for {endpoint}"


def adopt_jobs(
    connection: Connection, new: Sequence[NewJob], *, now_ms: int, published_at_ms: int | None = None
) -> list[KnownJob]:
    """Writes the jobs of messages that carry their own request, and the batches that they name. The jobs, in order.

    If a job with the id exists, nothing is written. A job that names a batch of `run` or `submit` is refused: it would
    get into the results of another user's file. `published_at_ms` marks the jobs, so that the relay publishes no hint:
    the caller claims them itself.
    """
    if not new:
        return []
    closed = fetch_closed(connection, [job.batch_id for job in new if job.batch_id])
    sound = [refuse(job, CLOSED_BATCH) if job.batch_id in closed else job for job in new]
    known = insert_jobs(connection, sound, now_ms=now_ms, published_at_ms=published_at_ms)
    for endpoint in {job.endpoint for job in sound}:
        named = [
            job.batch_id
            for job, found in zip(sound, known, strict=True)
            if job.batch_id and job.endpoint == endpoint and found.is_new
        ]
        ensure_open_batches(connection, named, endpoint=endpoint, now_ms=now_ms)
    return known


def refuse(job: NewJob, why: str) -> NewJob:
    """The job for a message that is refused: failed, with its id and a sentence, in no batch."""
    return replace(
        job,
        body=job.body if len(job.body) <= LONGEST_REFUSED_BODY else "null",
        batch_id="",
        not_before_ms=None,
        ended_as=job.ended_as or JobState.FAILED,
        failure_message=why,
    )


def make_bare(job: NewJob) -> NewJob:
    """The job for a message that the database cannot store: only its id is kept. The last resort."""
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
    """The jobs that have these idempotency keys (at most 500), by key."""
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


def _job_columns(new: Sequence[NewJob], *, now_ms: int) -> dict[str, list[Any]]:
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
        "not_before_ms": [job.not_before_ms for job in new],
        "failure_message": [clean_text(job.failure_message) for job in new],
        "priority": [job.priority for job in new],
        "is_bulk": [job.is_bulk for job in new],
        "max_attempts": [job.max_attempts for job in new],
        "expires_at_ms": [job.expires_at_ms for job in new],
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
