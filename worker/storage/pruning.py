"""Pruning: what ended long ago leaves the ledger, in steps so small that others get in.

Spared, whatever their age, are jobs that a living run or an unfinished batch wants: its results are still to be
written. A batch of producers is open for ever, and spares none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
)

from worker.storage.engine import Ledger
from worker.storage.tables import (
    MAX_ROWS,
    attempts,
    batches,
    details,
    failure_bodies,
    is_in,
    jobs,
    requests,
    results,
    usage,
    wants,
)
from worker.storage.wants import OPEN

_STEP_S = 0.02  # a step's transaction stays under about this long
_SMALLEST_STEP = 20


def _has_ended_before(before_ms: Any) -> ColumnElement[bool]:
    # What was made later cannot have ended earlier: the clock of its worker was behind.
    return and_(jobs.c.ended_at_ms < before_ms, jobs.c.created_at_ms < before_ms)


_place = tuple_(jobs.c.ended_at_ms, jobs.c.id)
_ENDED = (
    select(jobs.c.id, jobs.c.batch_id, jobs.c.ended_at_ms)
    .where(
        _has_ended_before(bindparam("before_ms")),
        # From where the step before came to: what it spared is not looked at again by every step.
        _place > tuple_(bindparam("after_ms", -1, BigInteger), bindparam("after_id", "")),
    )
    .order_by(jobs.c.ended_at_ms, jobs.c.id)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_IS_UNFINISHED = (batches.c.kind != "tasks") & or_(
    batches.c.submitted_at_ms.is_(None),
    (batches.c.kind == "run") & batches.c.held_at_ms.is_(None),
    exists().where(jobs.c.batch_id == batches.c.id, is_in(*OPEN)).correlate(batches),
    exists()
    .where(wants.c.batch_id == batches.c.id, jobs.c.id == wants.c.job_id, is_in(*OPEN))
    .correlate(batches),
)
_ids: BindParameter[Sequence[str]] = bindparam("ids", expanding=True)
_BELONGINGS = [
    delete(table).where(table.c.job_id.in_(_ids))
    for table in (requests, details, attempts, results, failure_bodies, wants)
]
_USAGE = delete(usage).where(usage.c.job_id.in_(_ids))
_JOBS = delete(jobs).where(jobs.c.id.in_(_ids))
_EMPTY_BATCHES = delete(batches).where(
    batches.c.created_at_ms < bindparam("before_ms"),
    batches.c.submitted_at_ms.is_not(None),
    or_(batches.c.kind != "run", batches.c.held_at_ms.is_not(None)),
    ~exists().where(jobs.c.batch_id == batches.c.id),
    ~exists().where(wants.c.batch_id == batches.c.id),
)


@dataclass(frozen=True, slots=True)
class _Step:
    """How many jobs were met and removed, and where the next step goes on."""

    met: int
    removed: int
    after: tuple[int, str]


def count_ended(connection: Connection, *, before_ms: int) -> int:
    """Jobs that ended before then, without those that are spared."""
    ended = select(func.count()).where(_has_ended_before(before_ms))
    return int(connection.execute(ended).scalar_one()) - count_spared(connection, before_ms=before_ms)


def count_spared(connection: Connection, *, before_ms: int) -> int:
    """Jobs that ended before then and are spared, because a living run or an unfinished batch wants them."""
    unfinished = select(batches.c.id).where(_IS_UNFINISHED)
    is_wanted_elsewhere = exists().where(wants.c.job_id == jobs.c.id, wants.c.batch_id.in_(unfinished))
    spared = select(func.count()).where(
        _has_ended_before(before_ms), or_(jobs.c.batch_id.in_(unfinished), is_wanted_elsewhere)
    )
    return int(connection.execute(spared).scalar_one())


def prune(
    ledger: Ledger, *, before_ms: int, with_usage: bool, on_step: Callable[[int], None] | None = None
) -> int:
    """Number of jobs removed: those that ended before `before_ms` and are not spared, with all that belongs to them.

    Usage stays unless `with_usage`: it says what was paid. Batches without jobs go as well. `on_step` is told the
    number after each step; what was removed stays removed if it is stopped. Raises DatabaseAway.
    """
    removed, size, after = 0, _SMALLEST_STEP, (-1, "")
    while True:
        began_s = time.perf_counter()
        step = ledger.run(
            partial(_prune_some, before_ms=before_ms, after=after, at_most=size, with_usage=with_usage)
        )
        took_s = time.perf_counter() - began_s
        removed += step.removed
        after = step.after
        if on_step is not None:
            on_step(removed)
        if step.met < size:
            ledger.run(lambda connection: connection.execute(_EMPTY_BATCHES, {"before_ms": before_ms}))
            return removed
        size = min(MAX_ROWS, max(_SMALLEST_STEP, round(step.met * _STEP_S / max(took_s, 1e-6))))


def _prune_some(
    connection: Connection, *, before_ms: int, after: tuple[int, str], at_most: int, with_usage: bool
) -> _Step:
    query = {"before_ms": before_ms, "after_ms": after[0], "after_id": after[1], "at_most": at_most}
    met = connection.execute(_ENDED, query).all()
    if not met:
        return _Step(0, 0, after)
    spared = _find_spared(connection, {row.id: row.batch_id for row in met})
    ids = sorted(row.id for row in met if row.id not in spared)
    if ids:
        for statement in [*_BELONGINGS, *([_USAGE] if with_usage else []), _JOBS]:
            connection.execute(statement, {"ids": ids})
    return _Step(len(met), len(ids), (met[-1].ended_at_ms, met[-1].id))


def _find_spared(connection: Connection, homes: Mapping[str, str]) -> set[str]:
    """Those of these jobs (at most 500, each with its home) that a living run or an unfinished batch wants."""
    elsewhere = connection.execute(
        select(wants.c.job_id, wants.c.batch_id).where(wants.c.job_id.in_(sorted(homes)))
    )
    pairs = {*homes.items(), *((row.job_id, row.batch_id) for row in elsewhere)}
    named = sorted({batch_id for _, batch_id in pairs if batch_id})
    unfinished = set(
        connection.execute(select(batches.c.id).where(batches.c.id.in_(named), _IS_UNFINISHED)).scalars()
    )
    return {job_id for job_id, batch_id in pairs if batch_id in unfinished}
