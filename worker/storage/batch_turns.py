"""Finds the batches that have jobs to publish, in turn. Each is found by one step in an index."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    Integer,
    bindparam,
    case,
    func,
    literal_column,
    select,
)

from schemas.job import JobState
from worker.storage.tables import is_in, is_ready, jobs

_endpoint: BindParameter[str] = bindparam("of_endpoint")
_now: BindParameter[int] = bindparam("now_ms", type_=BigInteger)


@dataclass(slots=True)
class Turn:
    """A batch with jobs to publish: whether some are ready, and whether retries are due."""

    batch_id: str
    has_ready: bool = False
    has_due: bool = False


def _build_walk(among: ColumnElement[bool], *, is_waiting: bool) -> Any:
    """A statement for the ids of batches after `after` that have jobs `among` these, ascending, at most `at_most`.

    With `is_waiting`, batches without a due job are left out, and do not count.
    """
    next_batch = select(func.min(jobs.c.batch_id)).where(among, jobs.c.endpoint == _endpoint)
    first = next_batch.where(jobs.c.batch_id > bindparam("after")).scalar_subquery()
    walk = select(first.label("batch_id"), literal_column("0", Integer).label("n")).cte(
        "walk", recursive=True
    )
    earliest = (
        select(func.min(jobs.c.not_before_ms))
        .where(among, jobs.c.endpoint == _endpoint, jobs.c.batch_id == walk.c.batch_id)
        .scalar_subquery()
    )
    counted = case((earliest <= _now, 1), else_=0) if is_waiting else literal_column("1", Integer)
    behind = next_batch.where(jobs.c.batch_id > walk.c.batch_id).scalar_subquery()
    step = select(behind, walk.c.n + counted).where(
        walk.c.batch_id.is_not(None), walk.c.n < bindparam("at_most", type_=Integer)
    )
    whole = walk.union_all(step)
    found = select(whole.c.batch_id).where(whole.c.batch_id.is_not(None))
    if is_waiting:
        is_due = (
            select(func.min(jobs.c.not_before_ms))
            .where(among, jobs.c.endpoint == _endpoint, jobs.c.batch_id == whole.c.batch_id)
            .scalar_subquery()
        ) <= _now
        found = found.where(is_due)
    return found


_READY_WALK = _build_walk(is_ready(), is_waiting=False)
_DUE_WALK = _build_walk(is_in(JobState.WAITING), is_waiting=True)
_ANY_DUE = (
    select(jobs.c.id)
    .where(is_in(JobState.WAITING), jobs.c.endpoint == _endpoint, jobs.c.not_before_ms <= _now)
    .limit(1)
)


def find_turns(
    connection: Connection, endpoint: str, *, after: str, held: Collection[str], at_most: int, now_ms: int
) -> list[Turn]:
    """At most `at_most` batches, in the order of their ids, beginning after `after` and going on from the first one.

    Jobs without a batch are left out.
    """
    if at_most <= 0:
        return []
    query = {"of_endpoint": endpoint, "now_ms": now_ms, "at_most": at_most + len(held)}
    # Most of the time nothing is due: then the batches of waiting jobs need not be searched.
    any_due = connection.execute(_ANY_DUE, query).first() is not None
    turns: dict[str, Turn] = {}
    for begin, end in ((after, None), ("", after)):
        if begin == end:
            continue
        of_round: dict[str, Turn] = {}
        for walk in (_READY_WALK, _DUE_WALK) if any_due else (_READY_WALK,):
            for batch_id in connection.execute(walk, {**query, "after": begin}).scalars():
                if batch_id in held or (end is not None and batch_id > end):
                    continue
                turn = of_round.setdefault(batch_id, Turn(batch_id))
                turn.has_ready |= walk is _READY_WALK
                turn.has_due |= walk is _DUE_WALK
        turns |= {batch_id: of_round[batch_id] for batch_id in sorted(of_round)}
        if len(turns) >= at_most:
            break
    return list(turns.values())[:at_most]
