"""Pruning: what ended long ago leaves the ledger, in steps so small that others get in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, and_, bindparam, delete, exists, func, select

from worker.storage.engine import Ledger
from worker.storage.tables import (
    MAX_ROWS,
    attempts,
    batches,
    details,
    failure_bodies,
    jobs,
    requests,
    results,
    usage,
)

_STEP_S = 0.02  # a step's transaction stays under about this long
_SMALLEST_STEP = 20


def _has_ended_before(before_ms: Any) -> ColumnElement[bool]:
    # What was made later cannot have ended earlier: the clock of its worker was behind.
    return and_(jobs.c.ended_at_ms < before_ms, jobs.c.created_at_ms < before_ms)


_ENDED = (
    select(jobs.c.id)
    .where(_has_ended_before(bindparam("before_ms")))
    .order_by(jobs.c.ended_at_ms)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_ids: BindParameter[Sequence[str]] = bindparam("ids", expanding=True)
_BELONGINGS = [
    delete(table).where(table.c.job_id.in_(_ids))
    for table in (requests, details, attempts, results, failure_bodies)
]
_USAGE = delete(usage).where(usage.c.job_id.in_(_ids))
_JOBS = delete(jobs).where(jobs.c.id.in_(_ids))
_EMPTY_BATCHES = delete(batches).where(
    batches.c.created_at_ms < bindparam("before_ms"),
    batches.c.submitted_at_ms.is_not(None),
    ~exists().where(jobs.c.batch_id == batches.c.id),
)


def count_ended(connection: Connection, *, before_ms: int) -> int:
    """Jobs that ended before then."""
    return int(connection.execute(select(func.count()).where(_has_ended_before(before_ms))).scalar_one())


def prune(
    ledger: Ledger, *, before_ms: int, with_usage: bool, on_step: Callable[[int], None] | None = None
) -> int:
    """Number of jobs removed: those that ended before `before_ms`, with all that belongs to them.

    Usage stays unless `with_usage`: it says what was paid. Batches without jobs go as well. `on_step` is told the
    number after each step; what was removed stays removed if it is stopped. Raises DatabaseAway.
    """
    removed, size = 0, _SMALLEST_STEP
    while True:
        began_s = time.perf_counter()
        step = ledger.run(partial(_prune_some, before_ms=before_ms, at_most=size, with_usage=with_usage))
        took_s = time.perf_counter() - began_s
        removed += step
        if on_step is not None:
            on_step(removed)
        if step < size:
            ledger.run(lambda connection: connection.execute(_EMPTY_BATCHES, {"before_ms": before_ms}))
            return removed
        size = min(MAX_ROWS, max(_SMALLEST_STEP, round(step * _STEP_S / max(took_s, 1e-6))))


def _prune_some(connection: Connection, *, before_ms: int, at_most: int, with_usage: bool) -> int:
    ids = sorted(connection.execute(_ENDED, {"before_ms": before_ms, "at_most": at_most}).scalars())
    if not ids:
        return 0
    for statement in [*_BELONGINGS, *([_USAGE] if with_usage else []), _JOBS]:
        connection.execute(statement, {"ids": ids})
    return len(ids)
