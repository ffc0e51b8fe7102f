"""Moves of jobs that users or the time cause: retry, cancel, expire. Each is made by `transitions.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, extract, func, not_, select, update

from schemas.job import JobState, Move, states_open_to
from worker.storage.tables import IDLE, MAX_ROWS, failure_bodies, is_in, jobs, wants
from worker.storage.transitions import move_jobs
from worker.storage.unwanted import abandon_jobs_of_batch, want_again
from worker.storage.wants import assign_homes, bring_home

# The columns that a new generation of a job resets.
_NEW_GENERATION = {
    "generation": jobs.c.generation + 1,
    "attempts": 0,
    "bad_responses": 0,
    "losses": 0,
    "solo_losses": 0,
    "blocked_since_ms": None,
    "blocked_until_ms": None,
    "is_cancel_requested": False,
    # Its expiry may have passed: the job would expire again at once.
    "expires_at_ms": None,
    "failure_kind": None,
    "http_status": None,
    "request_id": None,
    "failure_message": None,
}


def retry_jobs(connection: Connection, ids: Sequence[str], *, now_ms: int) -> list[str]:
    """Queues jobs of `ids` that ended without a success again, as a new generation. Returns their ids."""
    return _retry(connection, jobs.c.id.in_(sorted(ids)[:MAX_ROWS]), now_ms=now_ms)


def retry_batch(
    connection: Connection,
    batch_id: str,
    *,
    states: Sequence[JobState],
    kinds: Sequence[str] = (),
    now_ms: int,
) -> list[str]:
    """Queues jobs that the batch wants again, at most 500. Returns their ids. Call again until it returns none.

    Only jobs in `states`, and only those that failed with one of `kinds`, if any are given.
    """
    chosen: ColumnElement[bool] = jobs.c.state.in_([state.value for state in states])
    if kinds:
        chosen &= jobs.c.failure_kind.in_(list(kinds))
    if JobState.CANCELLED in states:
        want_again(connection, batch_id)
        while bring_home(connection, batch_id) >= MAX_ROWS:
            pass
    # Two statements, each with its index: jobs whose home batch this is, then those that it wants besides.
    elsewhere = select(wants.c.job_id).where(wants.c.batch_id == batch_id)
    for of_batch in (jobs.c.batch_id == batch_id, jobs.c.id.in_(elsewhere)):
        if ids := _retry(connection, chosen & of_batch, now_ms=now_ms):
            return ids
    return []


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Numbers of jobs: `ended` at once; `asked`, running ones that end with their call; `kept`, as another batch wants
    them.
    """

    ended: int
    asked: int
    kept: int = 0


def cancel_jobs(connection: Connection, ids: Sequence[str], *, now_ms: int) -> int:
    """Cancels jobs (at most 500); running ones are cancelled when their call ends. Returns the number of both."""
    chosen = sorted(ids)[:MAX_ROWS]
    done = _cancel(connection, jobs.c.id.in_(chosen), now_ms=now_ms)
    return done.ended + done.asked


def cancel_batch(connection: Connection, batch_id: str, *, now_ms: int) -> Cancelled:
    """Cancels the batch's next jobs, at most 500. Call again until all numbers are 0.

    Running jobs that were asked before are not counted again.
    """
    if kept := abandon_jobs_of_batch(connection, batch_id):
        return Cancelled(ended=0, asked=0, kept=kept)
    # One statement reads one state: a job that the relay moves from waiting to queued meanwhile is not missed.
    # By the index on batch and state: the cost of a step does not grow with the batch.
    some = (
        select(jobs.c.id)
        .where(
            jobs.c.batch_id == batch_id,
            is_in(*states_open_to(Move.CANCEL)),
            not_(is_in(JobState.RUNNING) & jobs.c.is_cancel_requested),
        )
        .limit(MAX_ROWS)
    )
    return _cancel(connection, jobs.c.id.in_(some.scalar_subquery()), now_ms=now_ms)


def expire_jobs(connection: Connection, *, now_ms: int) -> int:
    """Expires queued and waiting jobs whose time is over, at most 500. Returns their number.

    With a database server, the time must be over by its clock, too: a worker whose clock is ahead must not end jobs.
    """
    is_over = jobs.c.expires_at_ms <= now_ms
    if connection.dialect.name == "postgresql":
        is_over &= jobs.c.expires_at_ms <= extract("epoch", func.clock_timestamp()) * 1000
    rows = connection.execute(
        select(jobs.c.id)
        .where(jobs.c.expires_at_ms.is_not(None), is_over, is_in(*IDLE))
        .order_by(jobs.c.expires_at_ms)
        .limit(MAX_ROWS)
        .with_for_update(skip_locked=True)
    )
    ids = sorted(row.id for row in rows)
    return len(move_jobs(connection, ids, Move.EXPIRE, out_of=IDLE, now_ms=now_ms))


def _cancel(connection: Connection, chosen: ColumnElement[bool], *, now_ms: int) -> Cancelled:
    open_states = [state.value for state in states_open_to(Move.CANCEL)]
    rows = connection.execute(
        select(jobs.c.id, jobs.c.state)
        .where(chosen, jobs.c.state.in_(open_states))
        .order_by(jobs.c.id)
        .with_for_update()
    ).all()
    running = [row.id for row in rows if row.state == JobState.RUNNING]
    idle = [row.id for row in rows if row.state != JobState.RUNNING]
    if running:
        # The call may be paid for already. It is not cut, so that its result is kept.
        connection.execute(update(jobs).where(jobs.c.id.in_(running)).values(is_cancel_requested=True))
    move_jobs(connection, idle, Move.CANCEL, out_of=IDLE, now_ms=now_ms)
    return Cancelled(ended=len(idle), asked=len(running))


def _retry(connection: Connection, chosen: ColumnElement[bool], *, now_ms: int) -> list[str]:
    endings = [state.value for state in states_open_to(Move.RETRY)]
    rows = connection.execute(
        select(jobs.c.id)
        .where(chosen, jobs.c.state.in_(endings))
        .order_by(jobs.c.id)
        .limit(MAX_ROWS)
        .with_for_update()
    )
    ids = [row.id for row in rows]
    if not ids:
        return []
    move_jobs(
        connection, ids, Move.RETRY, out_of=states_open_to(Move.RETRY), now_ms=now_ms, facts=_NEW_GENERATION
    )
    connection.execute(delete(failure_bodies).where(failure_bodies.c.job_id.in_(ids)))
    # The jobs are open again, and their home batch may be held.
    assign_homes(connection, ids)
    return ids
