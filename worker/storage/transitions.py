"""The one module in which a job changes its state. Every move is one of `LEGAL_MOVES`.

`record_outcomes` ends claims; each outcome is fenced by its claim's token. `move_jobs` makes the same move of many
jobs, after a user's command or when a time is over. `begin_jobs` writes new jobs, also those that end on arrival. Two
moves are in statements of other modules, and end no job: the claim (`claims.py`) and the relay's (`due.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, exists, or_, select, update

from schemas.failure import FailureKind
from schemas.job import FIRST_STATES, LEGAL_MOVES, TARGETS, JobState, Move, is_legal
from worker.policy.patience import waiting_since_ms
from worker.storage.budgets import BudgetGuard, Settled
from worker.storage.bulk import insert_columns
from worker.storage.cleaning import clean_text
from worker.storage.outcomes import GiveBack, Loss, Outcome, Recorded, Setback, Success, Usage
from worker.storage.prepared import Prepared, is_among, pack_ids, together
from worker.storage.records import Records
from worker.storage.tables import AnyRow, budgets, jobs, reservations

# A job with a reservation may have gone to another home batch since.
_IS_BUDGETED = or_(
    exists().where(budgets.c.batch_id == jobs.c.batch_id).correlate(jobs),
    exists().where(reservations.c.job_id == jobs.c.id).correlate(jobs),
).label("is_budgeted")
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
            _IS_BUDGETED,
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
_NEW = {name: f"new_{name}" for name in _MOVED_COLUMNS}  # a bound value must not have the name of a column
_UNMOVED: dict[str, Any] = dict.fromkeys(_NEW.values())
_MOVE = Prepared(
    lambda _: (
        update(jobs)
        .where(jobs.c.id == bindparam("job_id"))
        .values({name: bindparam(new) for name, new in _NEW.items()})
    )
)
_TAKE_NUMBER_BACK = Prepared(
    lambda _: update(jobs).where(jobs.c.id == bindparam("job_id")).values(claims=bindparam("new_claims"))
)
_COUNT_LOSS = Prepared(
    lambda _: (
        update(jobs)
        .where(jobs.c.id == bindparam("job_id"))
        .values(losses=bindparam("new_losses"), solo_losses=bindparam("new_solo_losses"))
    )
)


class IllegalMove(ValueError):
    """A move that is not legal from a job's state. It shows a defect of the caller."""


@dataclass(slots=True)
class _Writes:
    """The rows and parameters to write for one group of outcomes."""

    moves: list[dict[str, Any]] = field(default_factory=list)
    uncalled: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)
    records: Records = field(default_factory=Records)


def record_outcomes(
    connection: Connection, outcomes: Sequence[Outcome], *, settled: list[Settled] | None = None
) -> list[Recorded]:
    """Records outcomes, and returns what was done with each, in the order given. At most one outcome per job.

    Locks the rows in ascending order of ids first. Then decides each outcome by its row, and writes all. Budgets are
    settled last; with `settled` the caller does that, after the claims of the same transaction.
    """
    if not outcomes:
        return []
    ids = pack_ids(connection, [outcome.claim.job_id for outcome in outcomes])
    rows: dict[str, AnyRow] = {row.id: row for row in _LOCK.run(connection, {"ids": ids})}
    writes = _Writes()
    recorded = [_decide(rows.get(outcome.claim.job_id), outcome, writes) for outcome in outcomes]
    with together(connection):
        for statement, values in (
            (_MOVE, writes.moves),
            (_TAKE_NUMBER_BACK, writes.uncalled),
            (_COUNT_LOSS, writes.losses),
            *writes.records.statements(),
        ):
            if values:
                statement.run_many(connection, values)
    budgeted = [
        Settled(outcome.claim, rows[outcome.job_id].batch_id, _paid(outcome, done))
        for outcome, done in zip(outcomes, recorded, strict=True)
        if outcome.job_id in rows and rows[outcome.job_id].is_budgeted
    ]
    if settled is not None:
        settled += budgeted
    elif budgeted:
        BudgetGuard().balance(connection, budgeted, (), now_ms=max(one.ended_at_ms for one in outcomes))
    return recorded


def move_jobs(
    connection: Connection,
    ids: Sequence[str],
    move: Move,
    *,
    now_ms: int,
    out_of: Sequence[JobState] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> list[str]:
    """Makes a move of jobs (at most 500, locked by the caller). Returns the ids of those that made it, unordered.

    One statement. Jobs in the states `out_of` make the move; without `out_of`, those in all states from which it is
    legal. Their claim, published mark and times of the former state are cleared. `facts`: further columns to write, or
    other values for these. Raises IllegalMove.
    """
    is_open: ColumnElement[bool]
    if out_of is None:
        is_open = jobs.c.state.not_in([state.value for state in JobState if not is_legal(state, move)])
    else:
        for state in out_of:
            if not is_legal(state, move):
                raise IllegalMove(f"{move.value} may not be made from {state.value}")
        is_open = jobs.c.state.in_([state.value for state in out_of])
    if not ids:
        return []
    target = TARGETS[move]
    values: dict[str, Any] = {
        "state": target.value,
        "ended_at_ms": now_ms if target.is_final else None,
        "not_before_ms": None,
        "published_at_ms": None,
        "worker_id": None,
        "claim_token": None,
    }
    made = update(jobs).where(jobs.c.id.in_(ids), is_open).values({**values, **(facts or {})})
    return list(connection.execute(made.returning(jobs.c.id)).scalars())


def begin_jobs(
    connection: Connection,
    columns: Mapping[str, list[Any]],
    states: Sequence[JobState],
    *,
    now_ms: int,
    published_at_ms: int | None,
) -> int:
    """Writes new jobs, and returns their number. A job whose id or idempotency key exists already is not written.

    `columns`: the values of each column, except those that follow from the first state. `states`: the first states; a
    message that is refused, revoked or expired ends on arrival. `published_at_ms` marks the queued jobs. Raises
    IllegalMove.
    """
    if not FIRST_STATES.issuperset(states):
        raise IllegalMove("no job begins in such a state")
    refused = FailureKind.INVALID_REQUEST.value
    begun: dict[str, list[Any]] = {
        "state": [state.value for state in states],
        "ended_at_ms": [now_ms if state.is_final else None for state in states],
        "failure_kind": [refused if state is JobState.FAILED else None for state in states],
        "published_at_ms": [published_at_ms if state is JobState.QUEUED else None for state in states],
    }
    return insert_columns(connection, jobs, {**columns, **begun})


def _paid(outcome: Outcome, recorded: Recorded) -> Usage | None:
    """The tokens of an answer that was recorded just now; None of an outcome without one, or of a repeated one."""
    if recorded is Recorded.REPEATED or not isinstance(outcome, (Success, Setback)):
        return None
    return outcome.usage


def _decide(row: AnyRow | None, outcome: Outcome, writes: _Writes) -> Recorded:
    if row is None:  # the job was pruned, or the spool belongs to another database
        return Recorded.CLAIM_LOST
    if isinstance(outcome, Success):
        return _decide_success(row, outcome, writes)
    if isinstance(outcome, Setback) and outcome.usage is not None:
        writes.records.add_usage(row, outcome, outcome.usage, is_used=False)
    if row.state != JobState.RUNNING or row.claim_token != outcome.claim.token:
        return Recorded.CLAIM_LOST
    if isinstance(outcome, Setback):
        _decide_setback(row, outcome, writes)
    elif isinstance(outcome, GiveBack):
        _decide_give_back(row, outcome, writes)
    else:
        _decide_loss(row, outcome, writes)
    return Recorded.APPLIED


def _decide_success(row: AnyRow, outcome: Success, writes: _Writes) -> Recorded:
    if row.state == JobState.SUCCEEDED:
        if row.claim_token == outcome.claim.token:
            return Recorded.REPEATED
        # The first success wins (invariant 3). This one was paid for, too: its usage is kept.
        writes.records.add_attempt(outcome, "unused")
        writes.records.add_usage(row, outcome, outcome.usage, is_used=False)
        return Recorded.UNUSED
    writes.moves.append(
        _move(
            row,
            Move.SUCCEED,
            outcome,
            claim_token=outcome.claim.token,
            worker_id=outcome.claim.worker_id,
            http_status=outcome.http_status,
            request_id=clean_text(outcome.request_id),
        )
    )
    writes.records.add_result(outcome)
    writes.records.add_attempt(outcome, "succeeded")
    writes.records.add_usage(row, outcome, outcome.usage, is_used=True)
    return Recorded.APPLIED


def _decide_give_back(row: AnyRow, outcome: GiveBack, writes: _Writes) -> None:
    move = Move.CANCEL if row.is_cancel_requested else Move.RELEASE
    writes.moves.append(_move(row, move, outcome, **_blocked(row)))
    if outcome.was_called:
        writes.records.add_attempt(outcome, "released")
    else:
        writes.uncalled.append({"job_id": row.id, "new_claims": outcome.claim.number - 1})


def _decide_loss(row: AnyRow, outcome: Loss, writes: _Writes) -> None:
    if row.is_cancel_requested:
        moved = _move(row, Move.CANCEL, outcome, **_blocked(row))
    elif outcome.is_given_up:
        moved = _move(
            row,
            Move.FAIL,
            outcome,
            failure_kind=FailureKind.WORKER_LOST.value,
            failure_message=f"its worker died {outcome.losses} times with it, "
            f"{outcome.solo_losses} of them while it ran alone",
        )
    else:
        moved = _move(row, Move.RELEASE, outcome, **_blocked(row))
    writes.moves.append(moved)
    writes.losses.append(
        {"job_id": row.id, "new_losses": outcome.losses, "new_solo_losses": outcome.solo_losses}
    )
    writes.records.add_attempt(outcome, "lost")


def _decide_setback(row: AnyRow, outcome: Setback, writes: _Writes) -> None:
    failure = outcome.failure
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
        "failure_kind": failure.kind.value,
        "http_status": failure.http_status,
        "request_id": clean_text(failure.request_id),
        "failure_message": clean_text(failure.message),
        "attempts": row.attempts + (1 if outcome.burns else 0),
        "bad_responses": row.bad_responses + (failure.kind is FailureKind.BAD_RESPONSE),
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
    if failure.body is not None and move is Move.FAIL:
        writes.records.add_failure_body(outcome.job_id, failure.body)
    writes.records.add_attempt(outcome, failure.kind.value)


def _blocked(row: AnyRow) -> dict[str, Any]:
    """The columns of the job's wait at a shut gate, unchanged: a claim that is given back does not end that wait."""
    return {"blocked_since_ms": row.blocked_since_ms, "blocked_until_ms": row.blocked_until_ms}


def _move(row: AnyRow, move: Move, outcome: Outcome, **facts: Any) -> dict[str, Any]:
    """The parameters of one move. Columns that are not in `facts` become empty, except the counts of burnt attempts."""
    state = LEGAL_MOVES[JobState(row.state), move]
    values = _UNMOVED.copy()
    values["job_id"] = row.id
    values["new_state"] = state.value
    values["new_attempts"] = row.attempts
    values["new_bad_responses"] = row.bad_responses
    if state.is_final:
        values["new_ended_at_ms"] = outcome.ended_at_ms
    for name, value in facts.items():
        values[_NEW[name]] = value
    return values
