"""The doctor's repairs. Each takes at most 500 jobs with its defect; the caller has locked them.

States change by legal moves only. Besides, the repairs change columns that contradict the job's state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from sqlalchemy import Connection, case, exists, func, insert, select, update

from schemas.completion import Usage
from schemas.failure import Failure, FailureKind
from schemas.job import JobState, Move
from worker.policy.cost import LARGEST_COUNT
from worker.storage.cleaning import clean_text
from worker.storage.due import unmark_published
from worker.storage.outcomes import Claim, Setback
from worker.storage.records import odd_finish_reason
from worker.storage.tables import attempts, is_in, jobs, results, usage
from worker.storage.transitions import move_jobs, record_outcomes
from worker.storage.wants import assign_homes

Mend = Callable[[Connection, list[str], int], None]  # the jobs' ids, and the time in milliseconds
_DOCTOR = "doctor"  # the worker id in claims that the doctor makes to fail a job
# An id may be used again after pruning. The usage of its first job stays, with numbers below those of this one's.
IS_OF_THIS_JOB = exists().where(attempts.c.job_id == usage.c.job_id, attempts.c.number <= usage.c.number)
IS_BEHIND_USAGE = exists().where(results.c.job_id == usage.c.job_id, results.c.number == usage.c.number)


def forget_claim(connection: Connection, ids: list[str], _: int) -> None:
    """Clears the columns of a claim in jobs that are not running."""
    connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(claim_token=None, worker_id=None))


def forget_end(connection: Connection, ids: list[str], _: int) -> None:
    """Clears the time of the end in open jobs."""
    connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(ended_at_ms=None))


def date_end(connection: Connection, ids: list[str], now_ms: int) -> None:
    """Sets the end of ended jobs to that of their last attempt, or to now if there is none."""
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
    """Restores the worker id of a claim from its token, as the worker may be alive. If that fails, gives the job back.

    No loss is counted, as it is not known that a worker died.
    """
    tokens = connection.execute(
        select(jobs.c.id, jobs.c.claim_token).where(
            jobs.c.id.in_(ids), jobs.c.claim_token.is_not(None), jobs.c.worker_id.is_(None)
        )
    ).all()
    for id_, token in tokens:
        # A token is `worker:n`. For any other text no worker has a heartbeat, so the job is rescued after a lease.
        worker_id = token.rpartition(":")[0] or token
        connection.execute(update(jobs).where(jobs.c.id == id_).values(worker_id=worker_id))
    unheld = select(jobs.c.id).where(jobs.c.id.in_(ids), jobs.c.claim_token.is_(None)).order_by(jobs.c.id)
    asked = list(connection.execute(unheld.where(jobs.c.is_cancel_requested)).scalars())
    others = list(connection.execute(unheld.where(~jobs.c.is_cancel_requested)).scalars())
    move_jobs(connection, asked, Move.CANCEL, out_of=(JobState.RUNNING,), now_ms=now_ms)
    move_jobs(connection, others, Move.RELEASE, out_of=(JobState.RUNNING,), now_ms=now_ms)


def raise_counts(connection: Connection, ids: list[str], _: int) -> None:
    """Raises claims and generation to those of the attempts, so that the next claim overwrites no attempt."""
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
    """Claims each job and fails it: the legal moves from queued to failed. A waiting job becomes queued first."""
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
    """Makes jobs that have a result succeeded. That is legal from every state (invariant 3)."""
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
    """Writes the usage that stored answers report. Numbers that they do not report are 0."""
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
    except ValueError:  # the details have another shape
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
    """Marks usage without a result as paid and not used."""
    connection.execute(
        update(usage)
        .where(usage.c.job_id.in_(ids), usage.c.is_used, IS_OF_THIS_JOB, ~IS_BEHIND_USAGE)
        .values(is_used=False, odd_finish_reason=None)
    )


def publish_again(connection: Connection, ids: list[str], _: int) -> None:
    """Removes published marks, so that the relay publishes the jobs again. A message that comes twice does no harm."""
    unmark_published(connection, ids)


def find_homes(connection: Connection, ids: list[str], _: int) -> None:
    """Gives the jobs a home batch that wants them and is not held."""
    assign_homes(connection, ids)
