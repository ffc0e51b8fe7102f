"""Records: what a call came to, fenced by the claim's token, in one transaction for a whole group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from schemas.failure import FailureKind
from schemas.job import LEGAL_MOVES, ORDINARY_FINISH_REASONS, JobState, Move
from worker.policy.patience import waiting_since_ms
from worker.storage.cleaning import clean_text
from worker.storage.outcomes import GiveBack, Outcome, Recorded, Setback, Success, Usage
from worker.storage.prepared import Prepared, is_among, pack_ids, together
from worker.storage.tables import AnyRow, attempts, build_upsert, failure_bodies, jobs, results, usage

# PostgreSQL's integer. A count beyond it is nonsense, and must not cost the answer that came with it.
LARGEST_COUNT = 2**31 - 1

_LOCK = Prepared(
    lambda dialect: (
        select(
            jobs.c.id,
            jobs.c.state,
            jobs.c.claim_token,
            jobs.c.attempts,
            jobs.c.bad_responses,
            jobs.c.batch_id,
            jobs.c.is_cancel_requested,
            jobs.c.expires_at_ms,
            jobs.c.blocked_since_ms,
            jobs.c.blocked_until_ms,
        )
        .where(is_among(dialect, jobs.c.id))
        .order_by(jobs.c.id)
        .with_for_update()
    )
)
_MOVED_COLUMNS = (
    "state",
    "attempts",
    "bad_responses",
    "claim_token",
    "not_before_ms",
    "published_at_ms",
    "worker_id",
    "ended_at_ms",
    "failure_kind",
    "http_status",
    "request_id",
    "failure_message",
    "blocked_since_ms",
    "blocked_until_ms",
)
_NEW = {name: f"new_{name}" for name in _MOVED_COLUMNS}  # a bound value may not be named as its column
_UNMOVED: dict[str, Any] = dict.fromkeys(_NEW.values())
_MOVE = Prepared(
    lambda _: (
        update(jobs)
        .where(jobs.c.id == bindparam("job_id"))
        .values({name: bindparam(new) for name, new in _NEW.items()})
    )
)
_UNCLAIM = Prepared(
    lambda _: update(jobs).where(jobs.c.id == bindparam("job_id")).values(claims=bindparam("new_claims"))
)
_KEEP_RESULT = Prepared(partial(build_upsert, table=results, keys=("job_id",)))
_KEEP_ATTEMPT = Prepared(partial(build_upsert, table=attempts, keys=("job_id", "number")))
_KEEP_USAGE = Prepared(partial(build_upsert, table=usage, keys=("job_id", "number")))
_KEEP_FAILURE_BODY = Prepared(partial(build_upsert, table=failure_bodies, keys=("job_id",)))


@dataclass(slots=True)
class _Writes:
    """The parameter sets of one group, by table."""

    moves: list[dict[str, Any]] = field(default_factory=list)
    unclaimed: list[dict[str, Any]] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)
    failure_bodies: list[dict[str, Any]] = field(default_factory=list)


def odd_finish_reason(reason: str | None) -> str | None:
    """The reason where it is out of the ordinary: such are counted."""
    return None if not reason or reason in ORDINARY_FINISH_REASONS else clean_text(reason)


def record_outcomes(connection: Connection, outcomes: Sequence[Outcome]) -> list[Recorded]:
    """What became of each outcome, in the order given. At most one outcome a job in `outcomes`.

    Rows are locked in ascending id order first; then each is decided by what it is, and written.
    """
    if not outcomes:
        return []
    ids = pack_ids(connection, [outcome.job_id for outcome in outcomes])
    rows: dict[str, AnyRow] = {row.id: row for row in _LOCK.run(connection, {"ids": ids})}
    writes = _Writes()
    recorded = [_decide(rows.get(outcome.job_id), outcome, writes) for outcome in outcomes]
    with together(connection):
        for statement, values in (
            (_MOVE, writes.moves),
            (_UNCLAIM, writes.unclaimed),
            (_KEEP_RESULT, writes.results),
            (_KEEP_ATTEMPT, writes.attempts),
            (_KEEP_USAGE, writes.usage),
            (_KEEP_FAILURE_BODY, writes.failure_bodies),
        ):
            if values:
                statement.run_many(connection, values)
    return recorded


def _decide(row: AnyRow | None, outcome: Outcome, writes: _Writes) -> Recorded:
    if row is None:  # pruned, or a spool of another database
        return Recorded.CLAIM_LOST
    if isinstance(outcome, Success):
        return _decide_success(row, outcome, writes)
    if isinstance(outcome, Setback) and outcome.usage is not None:
        writes.usage.append(_usage(row, outcome, outcome.usage, is_used=False))
    if row.state != JobState.RUNNING or row.claim_token != outcome.claim.token:
        return Recorded.CLAIM_LOST
    if isinstance(outcome, GiveBack):
        move = Move.CANCEL if row.is_cancel_requested else Move.RELEASE
        blocked = {"blocked_since_ms": row.blocked_since_ms, "blocked_until_ms": row.blocked_until_ms}
        writes.moves.append(_move(row, move, outcome, **blocked))
        if outcome.was_called:
            writes.attempts.append(_attempt(outcome, "released"))
        else:
            writes.unclaimed.append({"job_id": row.id, "new_claims": outcome.claim.number - 1})
        return Recorded.APPLIED
    _decide_setback(row, outcome, writes)
    return Recorded.APPLIED


def _decide_success(row: AnyRow, outcome: Success, writes: _Writes) -> Recorded:
    if row.state == JobState.SUCCEEDED:
        if row.claim_token == outcome.claim.token:
            return Recorded.REPEATED
        # The first success wins (invariant 3); this one was paid for all the same.
        writes.attempts.append(_attempt(outcome, "unused"))
        writes.usage.append(_usage(row, outcome, outcome.usage, is_used=False))
        return Recorded.UNUSED
    writes.moves.append(_move(row, Move.SUCCEED, outcome, claim_token=outcome.claim.token))
    writes.results.append(
        {
            "job_id": outcome.job_id,
            "number": outcome.claim.number,
            "http_status": outcome.http_status,
            "request_id": clean_text(outcome.request_id),
            "finish_reason": clean_text(outcome.finish_reason),
            "answer": clean_text(outcome.answer),
            "reasoning": clean_text(outcome.reasoning),
            "is_reasoning_unclosed": outcome.is_reasoning_unclosed,
            "raw": outcome.raw,
            "created_at_ms": outcome.ended_at_ms,
        }
    )
    writes.attempts.append(_attempt(outcome, "succeeded"))
    counted = _usage(row, outcome, outcome.usage, is_used=True)
    counted["odd_finish_reason"] = odd_finish_reason(outcome.finish_reason)
    writes.usage.append(counted)
    return Recorded.APPLIED


def _decide_setback(row: AnyRow, outcome: Setback, writes: _Writes) -> None:
    waits = outcome.not_before_ms is not None
    is_overdue = (
        waits
        and row.expires_at_ms is not None
        and row.expires_at_ms <= max(outcome.not_before_ms or 0, outcome.ended_at_ms)
    )
    if row.is_cancel_requested:
        move = Move.CANCEL
    elif is_overdue:
        move = Move.EXPIRE
    else:
        move = Move.WAIT if waits else Move.FAIL
    facts: dict[str, Any] = {
        "failure_kind": outcome.failure.kind.value,
        "http_status": outcome.failure.http_status,
        "request_id": clean_text(outcome.failure.request_id),
        "failure_message": clean_text(outcome.failure.message),
        "attempts": row.attempts + (1 if outcome.burns else 0),
        "bad_responses": row.bad_responses + (outcome.failure.kind is FailureKind.BAD_RESPONSE),
        "blocked_since_ms": None,
    }
    if outcome.is_blocked:
        since_ms, started_at_ms = row.blocked_since_ms, outcome.started_at_ms
        facts["blocked_since_ms"] = (
            started_at_ms
            if since_ms is None
            else waiting_since_ms(since_ms, row.blocked_until_ms, now_ms=started_at_ms)
        )
        facts["blocked_until_ms"] = outcome.not_before_ms
    if move is Move.WAIT:
        facts["not_before_ms"] = outcome.not_before_ms
    writes.moves.append(_move(row, move, outcome, **facts))
    if outcome.failure.body is not None and move is Move.FAIL:
        writes.failure_bodies.append({"job_id": outcome.job_id, "raw": outcome.failure.body})
    writes.attempts.append(
        _attempt(
            outcome,
            outcome.failure.kind.value,
            http_status=outcome.failure.http_status,
            request_id=clean_text(outcome.failure.request_id),
            message=clean_text(outcome.failure.message),
            latency_ms=outcome.latency_ms,
        )
    )


def _move(row: AnyRow, move: Move, outcome: Outcome, **facts: Any) -> dict[str, Any]:
    state = LEGAL_MOVES[JobState(row.state), move]
    facts["state"] = state.value
    facts.setdefault("attempts", row.attempts)
    facts.setdefault("bad_responses", row.bad_responses)
    if state.is_final:
        facts["ended_at_ms"] = outcome.ended_at_ms
    if isinstance(outcome, Success):
        facts["worker_id"] = outcome.claim.worker_id
        facts["http_status"] = outcome.http_status
        facts["request_id"] = clean_text(outcome.request_id)
    values = _UNMOVED.copy()
    for name, value in facts.items():
        values[_NEW[name]] = value
    values["job_id"] = row.id
    return values


def _attempt(outcome: Outcome, verdict: str, **facts: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "job_id": outcome.job_id,
        "number": outcome.claim.number,
        "generation": outcome.claim.generation,
        "worker_id": outcome.claim.worker_id,
        "claim_token": outcome.claim.token,
        "outcome": verdict,
        "http_status": None,
        "request_id": None,
        "message": None,
        "started_at_ms": outcome.started_at_ms,
        "ended_at_ms": outcome.ended_at_ms,
        "latency_ms": None,
    }
    if isinstance(outcome, Success):
        values.update(
            http_status=outcome.http_status,
            request_id=clean_text(outcome.request_id),
            latency_ms=outcome.latency_ms,
        )
    values.update(facts)
    return values


def _usage(row: AnyRow, outcome: Success | Setback, tokens: Usage, *, is_used: bool) -> dict[str, Any]:
    return {
        "job_id": outcome.job_id,
        "number": outcome.claim.number,
        "batch_id": row.batch_id,
        "model": clean_text(tokens.model),
        "prompt_tokens": min(tokens.prompt_tokens, LARGEST_COUNT),
        "completion_tokens": min(tokens.completion_tokens, LARGEST_COUNT),
        "total_tokens": min(tokens.total_tokens, LARGEST_COUNT),
        "cached_tokens": min(tokens.cached_tokens, LARGEST_COUNT),
        "reasoning_tokens": min(tokens.reasoning_tokens, LARGEST_COUNT),
        "is_used": is_used,
        "odd_finish_reason": None,
        "created_at_ms": outcome.ended_at_ms,
    }
