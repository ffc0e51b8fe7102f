"""The batches that want a job: any number of them, each with its own position and custom_id for the job.

One of them is the job's home batch: the job is scheduled with it, and its position and custom_id are in the job's row.
Each further want is a row of `wants`. The invariant: while a batch that is not held wants an open job, the job's home
batch is not held. So the relay and the claims check only the home batch.

All changes of wants, and of held batches, are made here. Two transactions at the same time can miss each other's
change: `bring_home`, which each living run calls repeatedly, corrects that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    and_,
    bindparam,
    case,
    delete,
    exists,
    not_,
    or_,
    select,
    tuple_,
    union_all,
    update,
)

from schemas.job import OPEN_STATES, JobState
from worker.storage.places import at_home, elsewhere
from worker.storage.tables import (
    MAX_ROWS,
    batches,
    insert_or_ignore,
    is_in,
    jobs,
    upsert,
    usage,
    wants,
)

OPEN = tuple(state for state in JobState if state in OPEN_STATES)


class Wanted(str):
    """A job's id, with a batch's custom_id for the job. It may differ from the one in the job's row."""

    __slots__ = ("custom_id",)
    custom_id: str | None

    def __new__(cls, job_id: str, custom_id: str | None) -> Wanted:
        made = super().__new__(cls, job_id)
        made.custom_id = custom_id
        return made


@dataclass(frozen=True, slots=True)
class Want:
    """A batch's want of a job: its position and custom_id for the job."""

    batch_id: str
    position: int
    job_id: str
    custom_id: str | None


@dataclass(frozen=True, slots=True)
class Swap:
    """A change of a job's home batch to that of the want `to`. The old home becomes a want, unless it `is_dropped`."""

    job_id: str
    home: Want
    to: Want
    gives_up: bool = False
    is_dropped: bool = False


_of_batch: BindParameter[str] = bindparam("of_batch")
HOME_COLUMNS = (jobs.c.id, jobs.c.state, jobs.c.batch_id, jobs.c.position, jobs.c.custom_id)
WANT_COLUMNS = (
    wants.c.batch_id.label("want_batch_id"),
    wants.c.position.label("want_position"),
    wants.c.custom_id.label("want_custom_id"),
)
_IS_LIVING = exists().where(batches.c.id == _of_batch, batches.c.held_at_ms.is_(None))
_IS_HOME_HELD = exists().where(batches.c.id == jobs.c.batch_id, batches.c.held_at_ms.is_not(None))
# A bulk job that its batch no longer wants. A lone job without a batch is another thing: no batch can hold it.
_IS_HOMELESS = and_(jobs.c.batch_id == "", jobs.c.is_bulk)
_TO_BRING_HOME = (
    select(*HOME_COLUMNS, *WANT_COLUMNS)
    .select_from(wants.join(jobs, jobs.c.id == wants.c.job_id))
    .where(
        wants.c.batch_id == _of_batch,
        not_(wants.c.is_given_up),
        is_in(*OPEN),
        or_(_IS_HOME_HELD, _IS_HOMELESS),
        _IS_LIVING,
    )
    .order_by(jobs.c.id, wants.c.position)
    .limit(MAX_ROWS)
)
wanter = batches.alias("wanter")
# Batches that are not held come first.
last_if_held = case((wanter.c.held_at_ms.is_not(None), 1), else_=0)
# As an expression, so that no index of batches is used: these statements read the wants, which are few, and not a
# batch's million jobs.
home_unindexed = jobs.c.batch_id.concat("")
_TO_HAND_OVER = (
    select(*HOME_COLUMNS, *WANT_COLUMNS)
    .select_from(jobs.join(wants, wants.c.job_id == jobs.c.id).join(wanter, wanter.c.id == wants.c.batch_id))
    .where(
        home_unindexed == _of_batch,
        is_in(*OPEN),
        not_(wants.c.is_given_up),
        wanter.c.held_at_ms.is_(None),
        ~_IS_LIVING,
    )
    .order_by(jobs.c.id, wants.c.batch_id, wants.c.position)
    .limit(MAX_ROWS)
)
_WITHOUT_HOME = (
    select(*HOME_COLUMNS, *WANT_COLUMNS)
    .select_from(jobs.join(wants, wants.c.job_id == jobs.c.id).join(wanter, wanter.c.id == wants.c.batch_id))
    .where(
        is_in(*OPEN),
        not_(wants.c.is_given_up),
        or_(_IS_HOMELESS, _IS_HOME_HELD & wanter.c.held_at_ms.is_(None)),
    )
    .order_by(jobs.c.id, last_if_held, wants.c.batch_id, wants.c.position)
)
# Breaks the invariant: an open job whose home batch is held, although a batch that is not held wants it.
IS_LEFT_BEHIND = and_(
    is_in(*OPEN),
    _IS_HOME_HELD,
    exists()
    .where(
        wants.c.job_id == jobs.c.id,
        not_(wants.c.is_given_up),
        wanter.c.id == wants.c.batch_id,
        wanter.c.held_at_ms.is_(None),
    )
    .correlate(jobs),
)


def add_wants(connection: Connection, new: Sequence[Want]) -> None:
    """Writes further wants of jobs. A job whose home batch is held gets another one that is not."""
    if not new:
        return
    wanted = {(want.batch_id, want.position, want.job_id): want for want in new}
    ids = sorted({want.job_id for want in new})
    for start in range(0, len(ids), MAX_ROWS):
        some = ids[start : start + MAX_ROWS]
        homes = connection.execute(
            select(*HOME_COLUMNS).where(jobs.c.id.in_(some)).order_by(jobs.c.id).with_for_update()
        ).all()
        for row in homes:
            wanted.pop((row.batch_id, row.position, row.id), None)
        # A transaction that holds one of these batches at the same time waits for the row locks, and sees these wants.
        connection.execute(
            select(batches.c.id)
            .where(batches.c.id.in_(sorted({row.batch_id for row in homes})))
            .order_by(batches.c.id)
            .with_for_update(read=True)
        ).all()
        keep_going(connection, some)
    if wanted:
        connection.execute(
            upsert(connection, wants, "batch_id", "position", "job_id"),
            [
                {
                    "batch_id": want.batch_id,
                    "position": want.position,
                    "job_id": want.job_id,
                    "custom_id": want.custom_id,
                    "is_given_up": False,
                }
                for _, want in sorted(wanted.items())
            ],
        )
    assign_homes(connection, ids)


def assign_homes(connection: Connection, ids: Sequence[str]) -> None:
    """Finds a new home batch for open jobs of `ids` whose home batch is held, or that have none.

    A batch that wants the job and is not held; for a job without a home batch, else one that is held.
    """
    ordered = sorted(ids)
    for start in range(0, len(ordered), MAX_ROWS):
        query = _WITHOUT_HOME.where(jobs.c.id.in_(ordered[start : start + MAX_ROWS]))
        found = connection.execute(locked(query)).all()
        swap_homes(connection, [Swap(row.id, home_of(row), want_of(row)) for row in first_of_each(found)])


def needs_bringing_home(connection: Connection, batch_id: str) -> bool:
    """Whether this batch is not held, and wants open jobs whose home batch is held."""
    return connection.execute(_TO_BRING_HOME.limit(1), {"of_batch": batch_id}).first() is not None


def bring_home(connection: Connection, batch_id: str) -> int:
    """Makes this batch the home batch of open jobs that it wants and whose home batch is held.

    Does nothing if this batch is held. Reads at most 500 wants and returns their number: call again while it is 500.
    """
    found = connection.execute(locked(_TO_BRING_HOME), {"of_batch": batch_id}).all()
    swap_homes(connection, [Swap(row.id, home_of(row), want_of(row)) for row in first_of_each(found)])
    return len(found)


def hand_over(connection: Connection, batch_id: str) -> int:
    """If this batch is held, gives its open jobs to batches that want them, too, and are not held.

    Reads at most 500 wants and returns their number: call again while it is 500.
    """
    found = connection.execute(locked(_TO_HAND_OVER), {"of_batch": batch_id}).all()
    swap_homes(connection, [Swap(row.id, home_of(row), want_of(row)) for row in first_of_each(found)])
    return len(found)


def keep_going(connection: Connection, ids: Sequence[str]) -> None:
    """Withdraws the request to cancel open jobs of `ids` (at most 500), as a batch wants them."""
    connection.execute(
        update(jobs)
        .where(jobs.c.id.in_(sorted(ids)), jobs.c.is_cancel_requested, is_in(*OPEN))
        .values(is_cancel_requested=False)
    )


def fetch_places(
    connection: Connection, batch_id: str, *, after: tuple[int, str], limit: int = MAX_ROWS
) -> list[tuple[int, str]]:
    """The next places of a batch after a position and an id, as (position, job id), at most `limit`."""
    home = (
        at_home(batch_id)
        .where(tuple_(jobs.c.position, jobs.c.id) > after)
        .order_by(jobs.c.position, jobs.c.id)
        .limit(limit)
        .subquery()
    )
    beside = (
        elsewhere(batch_id)
        .where(tuple_(wants.c.position, wants.c.job_id) > after)
        .order_by(wants.c.position, wants.c.job_id)
        .limit(limit)
        .subquery()
    )
    both = (
        union_all(*(select(one.c.position, one.c.id) for one in (home, beside)))
        .order_by("position", "id")
        .limit(limit)
    )
    return [(row.position, row.id) for row in connection.execute(both)]


def fetch_wants(connection: Connection, job_id: str) -> list[tuple[Want, str | None]]:
    """The wants of a job, without that of its home batch, by batch and position; each with its batch's label."""
    rows = connection.execute(
        select(wants, batches.c.label)
        .select_from(wants.outerjoin(batches, batches.c.id == wants.c.batch_id))
        .where(wants.c.job_id == job_id)
        .order_by(wants.c.batch_id, wants.c.position)
    )
    return [(Want(row.batch_id, row.position, row.job_id, row.custom_id), row.label) for row in rows]


def swap_homes(connection: Connection, swaps: list[Swap]) -> None:
    """Gives each job its new home batch. The caller has locked the rows of the jobs, or is SQLite's only writer."""
    if not swaps:
        return
    connection.execute(
        update(jobs)
        .where(jobs.c.id == bindparam("job_id"))
        .values(
            batch_id=bindparam("to_batch"),
            position=bindparam("to_position"),
            custom_id=bindparam("to_custom_id"),
            # A hint that came while the home batch was held was dropped: the job is published again.
            published_at_ms=None,
        ),
        [
            {
                "job_id": swap.job_id,
                "to_batch": swap.to.batch_id,
                "to_position": swap.to.position,
                "to_custom_id": swap.to.custom_id,
            }
            for swap in swaps
        ],
    )
    # Tokens are counted for the home batch, and for each other batch that wants the job.
    connection.execute(
        update(usage).where(usage.c.job_id == bindparam("of_job")).values(batch_id=bindparam("to_batch")),
        [{"of_job": swap.job_id, "to_batch": swap.to.batch_id} for swap in swaps],
    )
    connection.execute(
        delete(wants).where(
            wants.c.batch_id == bindparam("of_batch"),
            wants.c.position == bindparam("of_position"),
            wants.c.job_id == bindparam("of_job"),
        ),
        [
            {"of_batch": swap.to.batch_id, "of_position": swap.to.position, "of_job": swap.job_id}
            for swap in swaps
        ],
    )
    kept = [swap for swap in swaps if swap.home.batch_id and not swap.is_dropped]
    if kept:
        connection.execute(
            insert_or_ignore(connection, wants),
            [
                {
                    "batch_id": swap.home.batch_id,
                    "position": swap.home.position,
                    "job_id": swap.job_id,
                    "custom_id": swap.home.custom_id,
                    "is_given_up": swap.gives_up,
                }
                for swap in kept
            ],
        )


def locked(query: Any) -> Any:
    return query.with_for_update(of=jobs)


def first_of_each(rows: Iterable[Any]) -> list[Any]:
    """The first row of each job."""
    found: dict[str, Any] = {}
    for row in rows:
        found.setdefault(row.id, row)
    return list(found.values())


def home_of(row: Any) -> Want:
    return Want(row.batch_id, row.position, row.id, row.custom_id)


def want_of(row: Any) -> Want:
    return Want(row.want_batch_id, row.want_position, row.id, row.want_custom_id)
