"""Batches that no longer want some of their jobs, as they were cancelled, or their input has changed."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, not_, select, tuple_, update

from schemas.job import JobState, Move
from worker.storage.tables import IDLE, MAX_ROWS, is_in, jobs, wants
from worker.storage.transitions import move_jobs
from worker.storage.wants import (
    HOME_COLUMNS,
    OPEN,
    WANT_COLUMNS,
    Swap,
    first_of_each,
    home_of,
    home_unindexed,
    last_if_held,
    locked,
    swap_homes,
    want_of,
    wanter,
)


def abandon_jobs_of_batch(connection: Connection, batch_id: str) -> int:
    """Leaves open jobs of a cancelled batch to the other batches that want them, at most 500. Returns their number.

    Their results still belong to this batch, too. But its want no longer prevents that they are cancelled.
    """
    of_others = (
        select(wants.c.position, wants.c.job_id)
        .select_from(wants.join(jobs, jobs.c.id == wants.c.job_id))
        .where(
            wants.c.batch_id == batch_id,
            not_(wants.c.is_given_up),
            is_in(*OPEN),
            jobs.c.batch_id != batch_id,
        )
        .order_by(wants.c.position, wants.c.job_id)
        .limit(MAX_ROWS)
    )
    pairs = [tuple(row) for row in connection.execute(of_others)]
    if pairs:
        connection.execute(
            update(wants)
            .where(wants.c.batch_id == batch_id, tuple_(wants.c.position, wants.c.job_id).in_(pairs))
            .values(is_given_up=True)
        )
        return len(pairs)
    # Then the jobs whose home batch this is. A batch that is not held is preferred as the new one.
    query = (
        select(*HOME_COLUMNS, *WANT_COLUMNS)
        .select_from(
            jobs.join(wants, wants.c.job_id == jobs.c.id).join(wanter, wanter.c.id == wants.c.batch_id)
        )
        .where(
            home_unindexed == batch_id,
            is_in(*OPEN),
            not_(wants.c.is_given_up),
            wants.c.batch_id != batch_id,
        )
        .order_by(jobs.c.id, last_if_held, wants.c.batch_id, wants.c.position)
        .limit(MAX_ROWS)
    )
    swaps = [
        Swap(row.id, home_of(row), want_of(row), gives_up=True)
        for row in first_of_each(connection.execute(locked(query)).all())
    ]
    swap_homes(connection, swaps)
    return len(swaps)


def want_again(connection: Connection, batch_id: str) -> None:
    """Undoes `abandon_jobs_of_batch` for this batch."""
    connection.execute(
        update(wants).where(wants.c.batch_id == batch_id, wants.c.is_given_up).values(is_given_up=False)
    )


def remove_wants(
    connection: Connection, batch_id: str, places: Sequence[tuple[int, str]], *, now_ms: int
) -> None:
    """Removes the batch's wants at these places (position and id, at most 500), as its input has changed.

    An open job that no other batch wants is cancelled.
    """
    gone = set(places)
    connection.execute(
        delete(wants).where(
            wants.c.batch_id == batch_id, tuple_(wants.c.position, wants.c.job_id).in_(sorted(gone))
        )
    )
    ids = sorted({job_id for _, job_id in gone})
    rows = connection.execute(
        select(*HOME_COLUMNS)
        .where(jobs.c.id.in_(ids), jobs.c.batch_id == batch_id)
        .order_by(jobs.c.id)
        .with_for_update()
    ).all()
    homeless = {row.id: row for row in rows if (row.position, row.id) in gone}
    if not homeless:
        return
    others = connection.execute(
        select(wants.c.job_id.label("id"), *WANT_COLUMNS)
        .select_from(wants.join(wanter, wanter.c.id == wants.c.batch_id))
        .where(wants.c.job_id.in_(sorted(homeless)), not_(wants.c.is_given_up))
        .order_by(wants.c.job_id, last_if_held, wants.c.batch_id, wants.c.position)
    ).all()
    swap_homes(
        connection,
        [
            Swap(row.id, home_of(homeless.pop(row.id)), want_of(row), is_dropped=True)
            for row in first_of_each(others)
        ],
    )
    left = sorted(homeless)
    for start in range(0, len(left), MAX_ROWS):
        _cancel_unwanted(connection, left[start : start + MAX_ROWS], now_ms=now_ms)


def _cancel_unwanted(connection: Connection, ids: list[str], *, now_ms: int) -> None:
    connection.execute(
        update(jobs).where(jobs.c.id.in_(ids), is_in(JobState.RUNNING)).values(is_cancel_requested=True)
    )
    move_jobs(connection, ids, Move.CANCEL, out_of=IDLE, now_ms=now_ms)
    connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(batch_id="", position=0, custom_id=None))
