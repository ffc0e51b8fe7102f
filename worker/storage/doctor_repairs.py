"""The doctor's repairs: each takes at most 500 jobs that have its defect, locked by its caller.

Only legal moves are made; what is changed beside them are columns that no state of a job has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from sqlalchemy import Connection, case, exists, func, insert, select, update

from schemas.completion import Usage
from schemas.failure import Failure, FailureKind
from schemas.job import JobState, Move
from worker.storage.cleaning import clean_text
from worker.storage.due import unmark_published
from worker.storage.outcomes import Claim, Setback
from worker.storage.records import LARGEST_COUNT, odd_finish_reason
from worker.storage.tables import attempts, is_in, jobs, results, usage
from worker.storage.transitions import move_jobs, record_outcomes
from worker.storage.wants import settle

Mend = Callable[[Connection, list[str], int], None]  # the jobs' ids, and the time in milliseconds
_DOCTOR = "doctor"  # in place of a worker's id, where a job has to be claimed to be failed

# An id may be used again after pruning: what its first job cost stays, with numbers before any attempt of this one.
IS_OF_THIS_JOB = exists().where(attempts.c.job_id == usage.c.job_id, attempts.c.number <= usage.c.number)
IS_BEHIND_USAGE = exists().where(results.c.job_id == usage.c.job_id, results.c.number == usage.c.number)


def forget_claim(connection: Connection, ids: list[str], _: int) -> None:
    """Takes the leftovers of a claim from jobs that nobody runs."""
    connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(claim_token=None, worker_id=None))


def forget_end(connection: Connection, ids: list[str], _: int) -> None:
    """Takes the time of its end from a job that is still open."""
    connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(ended_at_ms=None))


def date_end(connection: Connection, ids: list[str], now_ms: int) -> None:
    """Dates the end of jobs that have ended: when their last attempt did, else now."""
    last = (
        select(func.max(attempts.c.ended_at_ms))
        .where(attempts.c.job_id == jobs.c.id)
        .correlate(jobs)
        .scalar_subquery()
    )
    connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(ended_at_ms=func.coalesce(last, now_ms)))


def make_due(connection: Connection, ids: list[str], now_ms: int) -> None:
    """Makes waiting jobs due now."""
    connection.execute(
        update(jobs).where(jobs.c.id.in_(ids), is_in(JobState.WAITING)).values(not_before_ms=now_ms)
    )


def set_right_claims(connection: Connection, ids: list[str], now_ms: int) -> None:
    """Puts a worker back from the token, since the holder may be alive; where that is gone, gives the job back.

    That is as a rescue does it, but counts no loss: nobody knows that a worker died.
    """
    tokens = connection.execute(
        select(jobs.c.id, jobs.c.claim_token).where(
            jobs.c.id.in_(ids), jobs.c.claim_token.is_not(None), jobs.c.worker_id.is_(None)
        )
    ).all()
    for id_, token in tokens:
        # `worker:n`. Of a token that is not, no such worker beats either: a lease lets its job go.
        worker_id = token.rpartition(":")[0] or token
        connection.execute(update(jobs).where(jobs.c.id == id_).values(worker_id=worker_id))
    unheld = select(jobs.c.id).where(jobs.c.id.in_(ids), jobs.c.claim_token.is_(None)).order_by(jobs.c.id)
    asked = list(connection.execute(unheld.where(jobs.c.is_cancel_requested)).scalars())
    others = list(connection.execute(unheld.where(~jobs.c.is_cancel_requested)).scalars())
    move_jobs(connection, asked, Move.CANCEL, out_of=(JobState.RUNNING,), now_ms=now_ms)
    move_jobs(connection, others, Move.RELEASE, out_of=(JobState.RUNNING,), now_ms=now_ms)


def raise_counts(connection: Connection, ids: list[str], _: int) -> None:
    """Raises claims and generation to what the attempts say: the next claim must not overwrite one of them."""
    numbers, generations = (
        select(func.max(column)).where(attempts.c.job_id == jobs.c.id).correlate(jobs).scalar_subquery()
        for column in (attempts.c.number, attempts.c.generation)
    )
    connection.execute(
        update(jobs)
        .where(jobs.c.id.in_(ids))
        .values(
            claims=case((numbers > jobs.c.claims, numbers), else_=jobs.c.claims),
            generation=case((generations > jobs.c.generation, generations), else_=jobs.c.generation),
        )
    )


def fail_as_invalid(connection: Connection, ids: list[str], now_ms: int) -> None:
    """Claims each job and fails it: the legal way from queued, and from waiting through queued, to failed."""
    move_jobs(connection, ids, Move.RELAY, out_of=(JobState.WAITING,), now_ms=now_ms)
    held: dict[str, Any] = {
        "claims": jobs.c.claims + 1,
        "claimed_at_ms": now_ms,
        "worker_id": _DOCTOR,
        "claim_token": f"{_DOCTOR}:{now_ms}",
    }
    move_jobs(connection, ids, Move.CLAIM, out_of=(JobState.QUEUED,), now_ms=now_ms, facts=held)
    rows = connection.execute(
        select(jobs.c.id, jobs.c.claims, jobs.c.generation, jobs.c.claim_token).where(
            jobs.c.id.in_(ids), jobs.c.worker_id == _DOCTOR
        )
    )
    failure = Failure(
        FailureKind.INVALID_REQUEST, "its request is not in the ledger any more: submit it again"
    )
    outcomes = [
        Setback(
            claim=Claim(row.id, row.claim_token, row.claims, row.generation, _DOCTOR),
            started_at_ms=now_ms,
            ended_at_ms=now_ms,
            latency_ms=None,
            failure=failure,
            not_before_ms=None,
            burns=False,
        )
        for row in rows
    ]
    record_outcomes(connection, outcomes)


def succeed(connection: Connection, ids: list[str], now_ms: int) -> None:
    """The first success wins from every state (invariant 3): the result is there, and was paid for."""
    of_result = results.c.job_id == jobs.c.id
    winner = exists().where(results.c.job_id == attempts.c.job_id, results.c.number == attempts.c.number)
    mine = [
        select(column).where(attempts.c.job_id == jobs.c.id, winner).correlate(jobs).scalar_subquery()
        for column in (attempts.c.claim_token, attempts.c.worker_id)
    ]
    theirs = [
        select(column).where(of_result).correlate(jobs).scalar_subquery()
        for column in (results.c.created_at_ms, results.c.http_status, results.c.request_id)
    ]
    facts = {
        "claim_token": mine[0],
        "worker_id": mine[1],
        "ended_at_ms": theirs[0],
        "http_status": theirs[1],
        "request_id": theirs[2],
        "failure_kind": None,
        "failure_message": None,
        "blocked_since_ms": None,
        "blocked_until_ms": None,
    }
    move_jobs(connection, ids, Move.SUCCEED, now_ms=now_ms, facts=facts)


def count_tokens(connection: Connection, ids: list[str], _: int) -> None:
    """Writes the usage that the stored answers tell; what they do not tell is 0."""
    known = exists().where(usage.c.job_id == results.c.job_id, usage.c.number == results.c.number)
    connection.execute(
        update(usage)
        .where(
            usage.c.job_id.in_(ids),
            exists().where(results.c.job_id == usage.c.job_id, results.c.number == usage.c.number),
        )
        .values(is_used=True)
    )
    rows = connection.execute(
        select(
            results.c.job_id,
            results.c.number,
            results.c.raw,
            results.c.created_at_ms,
            results.c.finish_reason,
            jobs.c.batch_id,
            jobs.c.model,
        )
        .join(jobs, jobs.c.id == results.c.job_id)
        .where(results.c.job_id.in_(ids), ~known)
    ).all()
    if rows:
        connection.execute(insert(usage), [_usage_of(row) for row in rows])


def _usage_of(row: Any) -> dict[str, Any]:
    try:
        body = orjson.loads(bytes(row.raw))
    except orjson.JSONDecodeError:
        body = {}
    told = body if isinstance(body, dict) else {}
    tokens = told.get("usage")
    try:
        counts = Usage.model_validate(tokens if isinstance(tokens, dict) else {})
    except ValueError:  # the details are of another shape
        counts = Usage()
    model = told.get("model")
    return {
        "job_id": row.job_id,
        "number": row.number,
        "batch_id": row.batch_id,
        "model": clean_text(model) if isinstance(model, str) else row.model,
        "prompt_tokens": min(counts.prompt_tokens, LARGEST_COUNT),
        "completion_tokens": min(counts.completion_tokens, LARGEST_COUNT),
        "total_tokens": min(counts.total_tokens, LARGEST_COUNT),
        "cached_tokens": min(counts.cached_tokens, LARGEST_COUNT),
        "reasoning_tokens": min(counts.reasoning_tokens, LARGEST_COUNT),
        "is_used": True,
        "odd_finish_reason": odd_finish_reason(row.finish_reason),
        "created_at_ms": row.created_at_ms,
    }


def unuse(connection: Connection, ids: list[str], _: int) -> None:
    """Keeps usage that no result stands behind as paid for and not used."""
    connection.execute(
        update(usage)
        .where(usage.c.job_id.in_(ids), usage.c.is_used, IS_OF_THIS_JOB, ~IS_BEHIND_USAGE)
        .values(is_used=False, odd_finish_reason=None)
    )


def publish_again(connection: Connection, ids: list[str], _: int) -> None:
    """Has the relay publish them again; claims absorb a message that comes twice."""
    unmark_published(connection, ids)


def find_homes(connection: Connection, ids: list[str], _: int) -> None:
    """Gives them to a batch that wants them and is not held."""
    settle(connection, ids)
