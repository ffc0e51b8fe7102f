"""The moves that people and time make: retry, cancel, expire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, extract, func, not_, select, update

from schemas.job import JobState, Move, states_open_to
from worker.storage.tables import IDLE, MAX_ROWS, failure_bodies, is_in, jobs, wants
from worker.storage.transitions import move_jobs
from worker.storage.unwanted import give_up, want_again
from worker.storage.wants import bring_home, settle

# What a job that is queued again keeps of its generation before: nothing.
_BORN_AGAIN = {
    "generation": jobs.c.generation + 1,
    "attempts": 0,
    "bad_responses": 0,
    "losses": 0,
    "solo_losses": 0,
    "blocked_since_ms": None,
    "blocked_until_ms": None,
    "is_cancel_requested": False,
    # A deadline that has passed would only expire the job again.
    "expires_at_ms": None,
    "failure_kind": None,
    "http_status": None,
    "request_id": None,
    "failure_message": None,
}


def retry_jobs(connection: Connection, ids: Sequence[str], *, now_ms: int) -> list[str]:
    """Those of `ids` that had ended without a success, now queued again as a new generation."""
    return _retry(connection, jobs.c.id.in_(sorted(ids)[:MAX_ROWS]), now_ms=now_ms)


def retry_batch(
    connection: Connection,
    batch_id: str,
    *,
    states: Sequence[JobState],
    kinds: Sequence[str] = (),
    now_ms: int,
) -> list[str]:
    """At most 500 jobs that the batch wants in `states` (and of these failure kinds, if any), queued again.

    Call again until it returns nothing.
    """
    chosen: ColumnElement[bool] = jobs.c.state.in_([state.value for state in states])
    if kinds:
        chosen &= jobs.c.failure_kind.in_(list(kinds))
    if JobState.CANCELLED in states:
        want_again(connection, batch_id)
        while bring_home(connection, batch_id) >= MAX_ROWS:
            pass
    # One after the other, each from its index: those whose home the batch is, then those that it wants elsewhere.
    elsewhere = select(wants.c.job_id).where(wants.c.batch_id == batch_id)
    for of_batch in (jobs.c.batch_id == batch_id, jobs.c.id.in_(elsewhere)):
        if ids := _retry(connection, chosen & of_batch, now_ms=now_ms):
            return ids
    return []


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What cancelling came to: jobs that ended at once, running ones that were asked to, and those that stay.

    `kept` are open jobs that another batch wants too.
    """

    ended: int
    asked: int
    kept: int = 0


def cancel_jobs(connection: Connection, ids: Sequence[str], *, now_ms: int) -> int:
    """Number of `ids` (at most 500) cancelled, or asked to be when their call ends."""
    chosen = sorted(ids)[:MAX_ROWS]
    done = _cancel(connection, jobs.c.id.in_(chosen), now_ms=now_ms)
    return done.ended + done.asked


def cancel_batch(connection: Connection, batch_id: str, *, now_ms: int) -> Cancelled:
    """What cancelling the batch's next jobs came to, at most 500 of them.

    Call again until it comes to nothing: jobs that were asked before are not counted again.
    """
    if kept := give_up(connection, batch_id):
        return Cancelled(ended=0, asked=0, kept=kept)
    # One statement, and so one look: a job that the relay moves from waiting to queued cannot slip past it.
    # From the index on batch and state: a step costs what it changes, however large the batch is.
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
    """Number of waiting jobs (at most 500) whose time is over.

    By the server's clock as well, where there is a server: a worker whose own is ahead must end no job of others.
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
        # The call may have been paid for already: its result is kept, so it is asked, not cut.
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
        connection, ids, Move.RETRY, out_of=states_open_to(Move.RETRY), now_ms=now_ms, facts=_BORN_AGAIN
    )
    connection.execute(delete(failure_bodies).where(failure_bodies.c.job_id.in_(ids)))
    # Open again, it may have its home with a run that is over.
    settle(connection, ids)
    return ids
