"""All facts of one job: its request, its state, and each of its attempts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from schemas.job import JobState
from worker.storage.tables import (
    IDLE,
    AnyRow,
    attempts,
    batches,
    details,
    failure_bodies,
    jobs,
    requests,
    results,
    usage,
    workers,
)
from worker.storage.wants import fetch_wants


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that ended.

    `waited_ms`: the time since the end of the attempt before; None for the first, or if the two overlapped, as a worker
    was taken for dead too early. `host`: the worker's host and pid, while its row exists. `endpoint`: the one that was
    called, where jobs go to several; None: that of the job. Tokens are None without an answer.
    """

    number: int
    generation: int
    worker_id: str
    host: str | None
    endpoint: str | None
    outcome: str
    http_status: int | None
    request_id: str | None
    message: str | None
    started_at_ms: int | None
    ended_at_ms: int
    latency_ms: int | None
    waited_ms: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_nano: int | None  # also None without a known price
    is_used: bool | None


@dataclass(frozen=True, slots=True)
class Result:
    """The job's result, without its text."""

    number: int
    http_status: int
    request_id: str | None
    finish_reason: str | None
    is_reasoning_unclosed: bool
    created_at_ms: int
    model: str | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_nano: int | None  # None: the price is not known


@dataclass(frozen=True, slots=True)
class Content:
    """The texts that were sent and received. They are shown only to a user who asks for them."""

    request: str
    answer: str | None
    reasoning: str | None
    error: bytes | None  # of a failed job: the endpoint's last error body
    user_metadata: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class WantedBy:
    """A further batch that wants the job, beside its home batch."""

    batch_id: str
    label: str | None
    position: int
    custom_id: str | None


@dataclass(frozen=True, slots=True)
class Story:
    """A job with all facts that the ledger has. Its texts only if they were asked for."""

    id: str
    state: JobState
    batch_id: str | None
    batch_label: str | None
    position: int
    custom_id: str | None
    wanted_by: tuple[WantedBy, ...]  # by batch and position
    source_key: str | None
    model: str
    endpoint: str
    request_hash: str
    idempotency_key: str | None
    priority: int
    is_bulk: bool
    generation: int
    burnt: int  # attempts burnt in this generation
    max_attempts: int | None  # the job's own budget, if it has one
    claims: int
    losses: int
    solo_losses: int
    is_cancel_requested: bool
    is_held: bool  # it waits for a call, and its home batch is held
    worker_id: str | None
    worker_host: str | None
    created_at_ms: int
    claimed_at_ms: int | None
    published_at_ms: int | None
    not_before_ms: int | None
    blocked_since_ms: int | None
    expires_at_ms: int | None
    ended_at_ms: int | None
    failure_kind: str | None
    http_status: int | None
    request_id: str | None
    failure_message: str | None
    attempts: tuple[Attempt, ...]
    result: Result | None
    content: Content | None


_JOB = select(
    jobs, batches.c.label.label("batch_label"), batches.c.held_at_ms, workers.c.hostname, workers.c.pid
).select_from(
    jobs.outerjoin(batches, batches.c.id == jobs.c.batch_id).outerjoin(
        workers, workers.c.id == jobs.c.worker_id
    )
)
_ATTEMPTS = (
    select(
        attempts,
        workers.c.hostname,
        workers.c.pid,
        usage.c.prompt_tokens,
        usage.c.completion_tokens,
        usage.c.cost_nano,
        usage.c.is_used,
    )
    .select_from(
        attempts.outerjoin(workers, workers.c.id == attempts.c.worker_id).outerjoin(
            usage, (usage.c.job_id == attempts.c.job_id) & (usage.c.number == attempts.c.number)
        )
    )
    .order_by(attempts.c.number)
)
_RESULT = select(
    results.c.number,
    results.c.http_status,
    results.c.request_id,
    results.c.finish_reason,
    results.c.is_reasoning_unclosed,
    results.c.created_at_ms,
    usage.c.model,
    usage.c.prompt_tokens,
    usage.c.completion_tokens,
    usage.c.total_tokens,
    usage.c.cached_tokens,
    usage.c.reasoning_tokens,
    usage.c.cost_nano,
).select_from(
    results.outerjoin(usage, (usage.c.job_id == results.c.job_id) & (usage.c.number == results.c.number))
)


def fetch_story(connection: Connection, job_id: str, *, with_content: bool = False) -> Story | None:
    """The facts of a job, its attempts in order; None if there is no such job. Texts are read only `with_content`."""
    row = connection.execute(_JOB.where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        return None
    result = connection.execute(_RESULT.where(results.c.job_id == job_id)).one_or_none()
    return Story(
        id=row.id,
        state=JobState(row.state),
        batch_id=row.batch_id or None,
        batch_label=row.batch_label,
        position=row.position,
        custom_id=row.custom_id,
        wanted_by=tuple(
            WantedBy(want.batch_id, label, want.position, want.custom_id)
            for want, label in fetch_wants(connection, job_id)
        ),
        source_key=row.source_key,
        model=row.model,
        endpoint=row.endpoint,
        request_hash=row.request_hash,
        idempotency_key=row.idempotency_key,
        priority=row.priority,
        is_bulk=row.is_bulk,
        generation=row.generation,
        burnt=row.attempts,
        max_attempts=row.max_attempts,
        claims=row.claims,
        losses=row.losses,
        solo_losses=row.solo_losses,
        is_cancel_requested=row.is_cancel_requested,
        is_held=row.held_at_ms is not None and row.state in IDLE,
        worker_id=row.worker_id,
        worker_host=_host(row),
        created_at_ms=row.created_at_ms,
        claimed_at_ms=row.claimed_at_ms,
        published_at_ms=row.published_at_ms,
        not_before_ms=row.not_before_ms,
        blocked_since_ms=row.blocked_since_ms,
        expires_at_ms=row.expires_at_ms,
        ended_at_ms=row.ended_at_ms,
        failure_kind=row.failure_kind,
        http_status=row.http_status,
        request_id=row.request_id,
        failure_message=row.failure_message,
        attempts=_fetch_attempts(connection, job_id),
        result=None if result is None else _result(result),
        content=_fetch_content(connection, job_id) if with_content else None,
    )


def _fetch_attempts(connection: Connection, job_id: str) -> tuple[Attempt, ...]:
    found: list[Attempt] = []
    for row in connection.execute(_ATTEMPTS.where(attempts.c.job_id == job_id)):
        waited_ms = None
        if found and row.started_at_ms is not None and row.started_at_ms >= found[-1].ended_at_ms:
            waited_ms = row.started_at_ms - found[-1].ended_at_ms
        found.append(
            Attempt(
                number=row.number,
                generation=row.generation,
                worker_id=row.worker_id,
                host=_host(row),
                endpoint=row.endpoint,
                outcome=row.outcome,
                http_status=row.http_status,
                request_id=row.request_id,
                message=row.message,
                started_at_ms=row.started_at_ms,
                ended_at_ms=row.ended_at_ms,
                latency_ms=row.latency_ms,
                waited_ms=waited_ms,
                prompt_tokens=row.prompt_tokens,
                completion_tokens=row.completion_tokens,
                cost_nano=row.cost_nano,
                is_used=row.is_used,
            )
        )
    return tuple(found)


def _fetch_content(connection: Connection, job_id: str) -> Content:
    row = connection.execute(
        select(
            requests.c.body,
            results.c.answer,
            results.c.reasoning,
            failure_bodies.c.raw,
            details.c.user_metadata,
        )
        .select_from(
            jobs.outerjoin(requests, requests.c.job_id == jobs.c.id)
            .outerjoin(results, results.c.job_id == jobs.c.id)
            .outerjoin(failure_bodies, failure_bodies.c.job_id == jobs.c.id)
            .outerjoin(details, details.c.job_id == jobs.c.id)
        )
        .where(jobs.c.id == job_id)
    ).one()
    return Content(
        request=row.body or "",
        answer=row.answer,
        reasoning=row.reasoning,
        error=row.raw,
        user_metadata=row.user_metadata,
    )


def _result(row: AnyRow) -> Result:
    return Result(
        number=row.number,
        http_status=row.http_status,
        request_id=row.request_id,
        finish_reason=row.finish_reason,
        is_reasoning_unclosed=row.is_reasoning_unclosed,
        created_at_ms=row.created_at_ms,
        model=row.model,
        prompt_tokens=row.prompt_tokens or 0,
        completion_tokens=row.completion_tokens or 0,
        total_tokens=row.total_tokens or 0,
        cached_tokens=row.cached_tokens or 0,
        reasoning_tokens=row.reasoning_tokens or 0,
        cost_nano=row.cost_nano,
    )


def _host(row: AnyRow) -> str | None:
    return None if row.hostname is None else f"{row.hostname}:{row.pid}"
