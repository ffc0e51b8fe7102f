"""Pruning: removes ended jobs from the ledger, in steps so small that other writers need not wait.

Either by age, in all batches: jobs that a living run or an unfinished batch wants are spared, as results are still to
be written. (A batch of producers never finishes, and spares no jobs.) Or one batch of any age: jobs that other batches
want, too, stay with those.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    exists,
    or_,
    select,
    tuple_,
)

from schemas.job import JobState
from worker.storage.engine import Ledger
from worker.storage.tables import (
    MAX_ROWS,
    attempts,
    batches,
    budgets,
    details,
    failure_bodies,
    is_in,
    jobs,
    requests,
    reservations,
    results,
    usage,
    wants,
)
from worker.storage.unwanted import remove_wants
from worker.storage.wants import OPEN, fetch_places

_STEP_S = 0.02  # a step's transaction takes about this long at most
_SMALLEST_STEP = 20
START = (-1, "")

_place = tuple_(jobs.c.ended_at_ms, jobs.c.id)
_ENDED = (
    select(jobs.c.id, jobs.c.batch_id, jobs.c.ended_at_ms)
    .where(
        jobs.c.ended_at_ms < bindparam("before_ms"),
        # A job that was created after that time cannot have ended before it: its worker's clock was behind.
        jobs.c.created_at_ms < bindparam("before_ms"),
        # After the last job of the step before, so that spared jobs are not read again in every step.
        _place > tuple_(bindparam("after_ms", -1, BigInteger), bindparam("after_id", "")),
    )
    .order_by(jobs.c.ended_at_ms, jobs.c.id)
    .limit(bindparam("at_most"))
)
_ids: BindParameter[Sequence[str]] = bindparam("ids", expanding=True)
_BELONGINGS = [
    delete(table).where(table.c.job_id.in_(_ids))
    for table in (requests, details, attempts, results, failure_bodies, wants, reservations)
]
_USAGE = delete(usage).where(usage.c.job_id.in_(_ids))
_JOBS = delete(jobs).where(jobs.c.id.in_(_ids))
_IS_EMPTY = and_(
    ~exists().where(jobs.c.batch_id == batches.c.id),
    ~exists().where(wants.c.batch_id == batches.c.id),
)


@dataclass(frozen=True, slots=True)
class OfAge:
    """Ended jobs of any batch or none, that ended before `before_ms`.

    With `even_unfinished`, only jobs that a living run wants are spared. A run may be alive unless its batch is held or
    is one of `ended_runs`. `find_living`: which of some batches have a living run now. It is called while a run that
    begins must wait: see `begin_run`.
    """

    before_ms: int
    even_unfinished: bool = False
    ended_runs: frozenset[str] = frozenset()
    find_living: Callable[[Collection[str]], frozenset[str]] = lambda _: frozenset()


@dataclass(frozen=True, slots=True)
class OfBatch:
    """Ended jobs of any age that this batch wants, and no other.

    Jobs that other batches want, too, stay with those; open jobs stay.
    """

    batch_id: str


@dataclass(frozen=True, slots=True)
class Page:
    """The jobs that a step read, and where the next step begins."""

    met: int
    ids: Sequence[str]  # to be removed
    after: tuple[int, str]
    spared: int = 0
    open: int = 0
    places: Sequence[tuple[int, str]] = ()  # the batch's places of jobs that other batches want


@dataclass(frozen=True, slots=True)
class Pruned:
    """Numbers of jobs: removed; `spared`, as others want them; and `open` ones, which stay, too."""

    removed: int = 0
    spared: int = 0
    open: int = 0


def prune(
    ledger: Ledger,
    what: OfAge | OfBatch,
    *,
    with_usage: bool,
    on_step: Callable[[int], None] | None = None,
) -> Pruned:
    """Removes jobs and their rows in other tables, and batches without jobs.

    Usage, which tells what was paid, stays unless `with_usage`. `on_step` gets the number of removed jobs after each
    step. If it is stopped, the steps so far stay done. Raises DatabaseAway.
    """
    done, size, after = Pruned(), _SMALLEST_STEP, START
    while True:
        began_s = time.perf_counter()
        page = ledger.run(partial(_prune_some, what=what, after=after, at_most=size, with_usage=with_usage))
        took_s = time.perf_counter() - began_s
        done = Pruned(done.removed + len(page.ids), done.spared + page.spared, done.open + page.open)
        after = page.after
        if on_step is not None:
            on_step(done.removed)
        if page.met < size:
            _remove_empty(ledger, what)
            return done
        size = min(MAX_ROWS, max(_SMALLEST_STEP, round(page.met * _STEP_S / max(took_s, 1e-6))))


def find_page(
    connection: Connection,
    what: OfAge | OfBatch,
    *,
    after: tuple[int, str],
    at_most: int,
    is_to_write: bool = False,
) -> Page:
    """The next jobs for a prune, at most 500, sorted by their end; for a batch, by their position in it."""
    if isinstance(what, OfBatch):
        return _look_at_batch(connection, what, after=after, at_most=at_most, is_to_write=is_to_write)
    query = {"before_ms": what.before_ms, "after_ms": after[0], "after_id": after[1], "at_most": at_most}
    ended = _ENDED.with_for_update(skip_locked=True) if is_to_write else _ENDED
    met = connection.execute(ended, query).all()
    if not met:
        return Page(0, (), after)
    homes = {row.id: row.batch_id for row in met}
    spared = _find_spared(connection, homes, what, is_to_write=is_to_write)
    ids = sorted(row.id for row in met if row.id not in spared)
    return Page(len(met), ids, (met[-1].ended_at_ms, met[-1].id), spared=len(spared))


def _look_at_batch(
    connection: Connection, what: OfBatch, *, after: tuple[int, str], at_most: int, is_to_write: bool
) -> Page:
    places = fetch_places(connection, what.batch_id, after=after, limit=at_most)
    if not places:
        return Page(0, (), after)
    wanted = select(jobs.c.id, jobs.c.state, jobs.c.batch_id, jobs.c.position)
    wanted = wanted.where(jobs.c.id.in_(sorted({id_ for _, id_ in places}))).order_by(jobs.c.id)
    rows = connection.execute(wanted.with_for_update() if is_to_write else wanted).all()
    # A job that the batch wants at two places is counted where it is the home batch.
    here = set(places)
    met = [row for row in rows if row.batch_id != what.batch_id or (row.position, row.id) in here]
    ended = {row.id: row.batch_id for row in met if JobState(row.state) not in OPEN}
    # A transaction that adds a want for one of them from now on waits for the row lock, and finds the job gone.
    others = select(wants.c.job_id).where(
        wants.c.job_id.in_(sorted(ended)), wants.c.batch_id != what.batch_id
    )
    shared = {*connection.execute(others).scalars()}
    shared |= {id_ for id_, home in ended.items() if home not in ("", what.batch_id)}
    return Page(
        met=len(places),
        ids=sorted(ended.keys() - shared),
        after=places[-1],
        spared=len(shared),
        open=len(met) - len(ended),
        places=_places_of(connection, what.batch_id, shared, places) if is_to_write else (),
    )


def _places_of(
    connection: Connection, batch_id: str, ids: set[str], at_hand: Sequence[tuple[int, str]]
) -> list[tuple[int, str]]:
    """All places at which the batch wants one of `ids` (at most 500): `at_hand`, and further ones from the ledger."""
    further = select(wants.c.position, wants.c.job_id).where(
        wants.c.batch_id == batch_id, wants.c.job_id.in_(sorted(ids))
    )
    found = {(row.position, row.job_id) for row in connection.execute(further)}
    return sorted(found | {place for place in at_hand if place[1] in ids})


def _prune_some(
    connection: Connection,
    *,
    what: OfAge | OfBatch,
    after: tuple[int, str],
    at_most: int,
    with_usage: bool,
) -> Page:
    page = find_page(connection, what, after=after, at_most=at_most, is_to_write=True)
    if page.places and isinstance(what, OfBatch):
        remove_wants(connection, what.batch_id, page.places, now_ms=0)  # they have ended: none is cancelled
    if page.ids:
        for statement in [*_BELONGINGS, *([_USAGE] if with_usage else []), _JOBS]:
            connection.execute(statement, {"ids": page.ids})
    return page


def _find_spared(
    connection: Connection, homes: Mapping[str, str], what: OfAge, *, is_to_write: bool
) -> set[str]:
    """The jobs (of at most 500, by id with their home batch) whose results a batch still has to write."""
    elsewhere = connection.execute(
        select(wants.c.job_id, wants.c.batch_id).where(wants.c.job_id.in_(sorted(homes)))
    )
    pairs = {*homes.items(), *((row.job_id, row.batch_id) for row in elsewhere)}
    named = sorted({batch_id for _, batch_id in pairs if batch_id})
    closed = (
        select(batches.c.id).where(batches.c.id.in_(named), batches.c.kind != "tasks").order_by(batches.c.id)
    )
    if is_to_write:
        # From here on a run that begins waits for this transaction, and then finds the jobs that are left.
        closed = closed.with_for_update(read=True)
    living = what.find_living(connection.execute(closed).scalars().all())
    awaited = _may_live(what, living) if what.even_unfinished else _is_unfinished(what, living)
    unfinished = set(
        connection.execute(select(batches.c.id).where(batches.c.id.in_(named), awaited)).scalars()
    )
    return {job_id for job_id, batch_id in pairs if batch_id in unfinished}


def _may_live(what: OfAge, living: frozenset[str]) -> ColumnElement[bool]:
    return or_(
        batches.c.id.in_(sorted(living)),
        and_(
            batches.c.kind == "run",
            batches.c.held_at_ms.is_(None),
            batches.c.id.not_in(sorted(what.ended_runs)),
        ),
    )


def _is_unfinished(what: OfAge, living: frozenset[str]) -> ColumnElement[bool]:
    return (batches.c.kind != "tasks") & or_(
        batches.c.submitted_at_ms.is_(None),
        _may_live(what, living),
        exists().where(jobs.c.batch_id == batches.c.id, is_in(*OPEN)).correlate(batches),
        exists()
        .where(wants.c.batch_id == batches.c.id, jobs.c.id == wants.c.job_id, is_in(*OPEN))
        .correlate(batches),
    )


def _remove_empty(ledger: Ledger, what: OfAge | OfBatch) -> None:
    """Removes batches without jobs, in steps of at most 500."""
    if isinstance(what, OfBatch):
        is_it = batches.c.id == what.batch_id
        ledger.run(lambda connection: connection.execute(delete(batches).where(is_it, _IS_EMPTY)))
        ledger.run(partial(_remove_budgets, ids=[what.batch_id]))
        return
    after: str | None = ""
    while after is not None:
        after = ledger.run(partial(_remove_some_empty, what=what, after=after))


def _remove_some_empty(connection: Connection, *, what: OfAge, after: str) -> str | None:
    """Removes batches without jobs, of the next 500 after `after`. Returns the last one's id; None at the end."""
    empty = (
        select(batches.c.id, batches.c.kind)
        .where(
            batches.c.id > after,
            batches.c.created_at_ms < what.before_ms,
            batches.c.submitted_at_ms.is_not(None),
            _IS_EMPTY,
        )
        .order_by(batches.c.id)
        .limit(MAX_ROWS)
        .with_for_update(skip_locked=True)
    )
    met = connection.execute(empty).all()
    living = what.find_living([row.id for row in met if row.kind != "tasks"])
    ids = [row.id for row in met if row.id not in living]
    if ids:
        connection.execute(delete(batches).where(batches.c.id.in_(ids), ~_may_live(what, living), _IS_EMPTY))
        _remove_budgets(connection, ids)
    return met[-1].id if len(met) == MAX_ROWS else None


def _remove_budgets(connection: Connection, ids: Sequence[str]) -> None:
    """Removes the budgets of those batches (at most 500) that are gone."""
    is_there = exists().where(batches.c.id == budgets.c.batch_id)
    connection.execute(delete(budgets).where(budgets.c.batch_id.in_(ids), ~is_there))
