"""Writes validated requests into the ledger as jobs, once for each idempotency key."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from schemas.chat import ChatRequest, InvalidRequest, encode_request, hash_request
from schemas.job import Due
from worker.clock import Clock
from worker.errors import BrokerAway, InputError
from worker.ids import new_id
from worker.storage.batches import CLOSED_BATCH, ensure_open_batches, fetch_closed
from worker.storage.due import unmark_published
from worker.storage.engine import Ledger, Transaction
from worker.storage.intake import KnownJob, NewJob, describe_request, insert_jobs

BULK_PRIORITY = 9
_FIRST_CHUNK = 250
_LARGEST_CHUNK = 5000
_CHUNK_S = 0.02  # a bulk transaction takes about this long at most, so that other writers need not wait


@dataclass(frozen=True, slots=True)
class Submitted:
    """The number of new jobs of a bulk submission, and of those that the ledger had already."""

    new: int
    known: int


def make_job(
    request: ChatRequest,
    *,
    endpoint: str,
    idempotency_key: str | None = None,
    batch_id: str = "",
    position: int = 0,
    custom_id: str | None = None,
    source_key: str | None = None,
    priority: int | None = None,
    is_bulk: bool = False,
    max_attempts: int | None = None,
    expires_at_ms: int | None = None,
    identity: tuple[str, ...] | None = None,
) -> NewJob:
    """A new job for a validated request. A bulk job has the lowest priority if `priority` is None.

    With `identity`, the idempotency key is made of `identity`, the request's hash and the endpoint.
    """
    body = encode_request(request)
    request_hash = hash_request(body)
    if identity is not None:
        idempotency_key = identify(*identity, request_hash, endpoint)
    default_priority = BULK_PRIORITY if is_bulk else 0
    return NewJob(
        id=new_id(),
        body=body,
        model=request.model,
        request_hash=request_hash,
        endpoint=endpoint,
        idempotency_key=idempotency_key,
        batch_id=batch_id,
        position=position,
        custom_id=custom_id,
        source_key=source_key,
        priority=default_priority if priority is None else priority,
        is_bulk=is_bulk,
        max_attempts=max_attempts,
        expires_at_ms=expires_at_ms,
    )


def identify(*parts: str) -> str:
    """An idempotency key (SHA-256, hex) of `parts`. The parts are delimited: ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8) + raw)
    return digest.hexdigest()


def submit_one(
    ledger: Ledger, job: NewJob, *, clock: Clock, publish: Callable[[Sequence[Due]], None] | None
) -> KnownJob:
    """Writes the job down and publishes it at once. A job that the ledger has already is not changed.

    If `publish` is None, or raises BrokerAway, the relay publishes the job. Raises InvalidRequest, and writes and
    publishes nothing, if a job for another request has the id or the idempotency key, if another request in the batch
    has the custom_id, or if the batch was made from a file or a folder. Raises DatabaseAway.
    """
    now_ms = clock.now_ms()
    published_at_ms = None if publish is None else now_ms

    def work(connection: Transaction) -> KnownJob:
        insert = partial(insert_jobs, connection, now_ms=now_ms, published_at_ms=published_at_ms)
        if job.batch_id and job.custom_id is not None:
            # The first job with a custom_id reserves it in the batch. Jobs for the same request may share it.
            name_key = "custom:" + identify(job.batch_id, job.custom_id)
            known = insert([replace(job, idempotency_key=name_key)])[0]
            if known.id == job.id or known.taken_for is not None:
                return known
        return insert([job])[0]

    def checked(connection: Transaction) -> KnownJob:
        if job.batch_id:
            # In each transaction: a batch that existed before may have been pruned since.
            ensure_open_batches(connection, [job.batch_id], endpoint=job.endpoint, now_ms=now_ms)
            if fetch_closed(connection, [job.batch_id]):
                raise InvalidRequest([CLOSED_BATCH])
        known = work(connection)
        if known.taken_for is not None:
            raise InvalidRequest([_describe_taken(job, known)])
        return known

    known = ledger.run(checked)
    if publish is not None and known.is_new:
        try:
            publish([Due(job.id, job.priority, job.is_bulk)])
        except BrokerAway:
            ledger.run(lambda connection: unmark_published(connection, [job.id]))
    return known


def submit_many(
    ledger: Ledger,
    jobs: Iterable[NewJob],
    *,
    clock: Clock,
    on_chunk: Callable[[Sequence[KnownJob]], None] | None = None,
) -> Submitted:
    """Writes all of `jobs` in chunks; memory holds one chunk. The relay publishes them.

    `on_chunk` gets the jobs of each committed chunk, in the order given. The size of a chunk is set by the time that
    the last one took. Raises DatabaseAway; the chunks that were committed stay, and submitting again with the same
    keys writes the rest. Raises InputError if a key is that of a job for another request.
    """
    new = known = 0
    size = _FIRST_CHUNK
    rest = iter(jobs)
    while chunk := list(islice(rest, size)):
        started_s = time.perf_counter()
        found = ledger.run(partial(insert_jobs, new=chunk, now_ms=clock.now_ms()))
        took_s = time.perf_counter() - started_s
        size = min(_LARGEST_CHUNK, max(50, round(len(chunk) * _CHUNK_S / max(took_s, 1e-6))))
        fresh = sum(job.is_new for job in found)
        new += fresh
        known += len(found) - fresh
        if fresh < len(found):
            _check_same(chunk, found)
        if on_chunk is not None:
            on_chunk(found)
    return Submitted(new=new, known=known)


def _check_same(wanted: Sequence[NewJob], found: Sequence[KnownJob]) -> None:
    problems = [
        _describe_taken(job, known)
        for job, known in zip(wanted, found, strict=True)
        if known.taken_for is not None
    ]
    if problems:
        raise InputError("some keys were used before, for other requests:", problems)


def _describe_taken(job: NewJob, known: KnownJob) -> str:
    mine = describe_request(job.request_hash, job.endpoint)
    if known.id == job.id:
        name = f"task_id: {job.id} is the id of a job"
    elif job.batch_id and job.custom_id is not None and not job.is_bulk:
        name = f"custom_id: {json.dumps(job.custom_id)} names job {known.id} in batch {json.dumps(job.batch_id)},"
    else:
        name = f"idempotency key: {json.dumps(job.idempotency_key)} is that of job {known.id},"
    return f"{name} with another request ({known.taken_for}; this one is {mine}): give it one of its own"
