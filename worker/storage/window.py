"""The relay's view: which jobs are due, and the marks that say they were handed to the broker."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import BindParameter, Connection, bindparam, func, not_, select, update

from schemas.job import JobState
from worker.storage.claims import SOLO_AFTER_LOSSES
from worker.storage.tables import MAX_ROWS, is_in, is_published, is_ready, jobs, workers

_endpoint: BindParameter[str] = bindparam("of_endpoint")


@dataclass(frozen=True, slots=True)
class Due:
    """A job to publish: its id and where it goes."""

    id: str
    priority: int
    is_bulk: bool


# Those that run alone take their turns for a long time: they must not fill the window meanwhile.
_COUNT_PUBLISHED = select(func.count()).where(
    is_published(), jobs.c.endpoint == _endpoint, jobs.c.losses < SOLO_AFTER_LOSSES
)
_COUNT_LIVE_SLOTS = select(func.coalesce(func.sum(workers.c.slots), 0)).where(
    workers.c.ended_at_ms.is_(None), workers.c.endpoint == _endpoint
)
_NEXT_BATCH = select(func.min(jobs.c.batch_id)).where(
    is_ready(), jobs.c.endpoint == _endpoint, jobs.c.batch_id > bindparam("after")
)
_COUNT_PUBLISHED_LONE = _COUNT_PUBLISHED.where(not_(jobs.c.is_bulk))
_READY_OF_BATCH = (
    select(jobs.c.id, jobs.c.priority, jobs.c.is_bulk)
    .where(is_ready(), jobs.c.endpoint == _endpoint, jobs.c.batch_id == bindparam("of_batch"))
    .order_by(jobs.c.priority, jobs.c.id)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_WAITING_DUE = (
    select(jobs.c.id, jobs.c.priority, jobs.c.is_bulk)
    .where(
        is_in(JobState.WAITING),
        jobs.c.endpoint == _endpoint,
        jobs.c.not_before_ms <= bindparam("now_ms"),
        jobs.c.batch_id.not_in(bindparam("held", expanding=True)),
    )
    .order_by(jobs.c.not_before_ms)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_LONE_DUE = (
    select(jobs.c.id, jobs.c.priority, jobs.c.is_bulk)
    .where(
        is_in(JobState.WAITING),
        not_(jobs.c.is_bulk),
        jobs.c.endpoint == _endpoint,
        jobs.c.not_before_ms <= bindparam("now_ms"),
    )
    .order_by(jobs.c.not_before_ms)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_ids: BindParameter[Sequence[str]] = bindparam("ids", expanding=True)
# Guarded by state: a row that moved on since it was selected (SQLite has no row locks) stays as it is.
_MARK_PUBLISHED = (
    update(jobs)
    .where(jobs.c.id.in_(_ids), jobs.c.state.in_(("queued", "waiting")))
    .values(state="queued", published_at_ms=bindparam("now_ms"), not_before_ms=None)
)
_UNMARK = (
    update(jobs)
    .where(
        jobs.c.id.in_(
            select(jobs.c.id)
            .where(jobs.c.id.in_(_ids), is_published())
            .order_by(jobs.c.id)
            .with_for_update()
            .scalar_subquery()
        )
    )
    .values(published_at_ms=None)
)
_PUBLISHED_BEFORE = (
    select(jobs.c.id)
    .where(is_published(), jobs.c.endpoint == _endpoint, jobs.c.published_at_ms < bindparam("before_ms"))
    .order_by(jobs.c.published_at_ms)
    .limit(MAX_ROWS)
    .with_for_update(skip_locked=True)
)


def count_published(connection: Connection, endpoint: str) -> int:
    """Jobs handed to the broker and not claimed yet, but for those that run alone. Bounded by the relay's window."""
    return int(connection.execute(_COUNT_PUBLISHED, {"of_endpoint": endpoint}).scalar_one())


def count_live_slots(connection: Connection, endpoint: str) -> int:
    """Slots of all workers of this endpoint that have not ended."""
    return int(connection.execute(_COUNT_LIVE_SLOTS, {"of_endpoint": endpoint}).scalar_one())


def take_lone_due(connection: Connection, endpoint: str, *, window: int, now_ms: int) -> list[Due]:
    """Lone jobs to publish now, marked as published; at most `window` of them are in the broker then.

    They have room of their own: a retry of a lone job must not wait until bulk jobs have left theirs.
    """
    query = {"of_endpoint": endpoint, "now_ms": now_ms}
    room = min(window, MAX_ROWS) - connection.execute(_COUNT_PUBLISHED_LONE, query).scalar_one()
    if room <= 0:
        return []
    due = [Due(*row) for row in connection.execute(_LONE_DUE, {**query, "at_most": room})]
    due += _ready_of(connection, endpoint, "", room - len(due))
    mark_published(connection, [job.id for job in due], now_ms)
    return due


def take_due(
    connection: Connection,
    endpoint: str,
    *,
    room: int,
    after_batch: str,
    now_ms: int,
    held: Collection[str] = (),
) -> tuple[list[Due], str]:
    """At most `room` jobs to publish now, marked as published, and the batch to go on after.

    Jobs of `held` batches stay where they are. Retries that are due come first, then lone jobs, then an
    equal share of every batch, in turn.
    Commit before publishing: a lost message is relayed again, a ghost is not.
    """
    room = min(room, MAX_ROWS)
    if room <= 0:
        return [], after_batch
    query = {"of_endpoint": endpoint, "now_ms": now_ms}
    waiting = {**query, "at_most": room, "held": list(held)}
    due = [Due(*row) for row in connection.execute(_WAITING_DUE, waiting)]
    due += _ready_of(connection, endpoint, "", room - len(due))
    batches = _batches_with_ready(connection, endpoint, after_batch, held=held, at_most=room - len(due))
    for i, batch_id in enumerate(batches):
        left = room - len(due)
        share = -(-left // (len(batches) - i))
        due += _ready_of(connection, endpoint, batch_id, share)
        after_batch = batch_id
    mark_published(connection, [job.id for job in due], now_ms)
    return due, after_batch


def take_turns(
    connection: Connection, endpoint: str, *, after_batch: str, held: Collection[str], share: int
) -> tuple[list[Due], str]:
    """Ready jobs that are not marked yet: at most `share` lone ones and `share` of the next batch whose turn it is."""
    ready = _ready_of(connection, endpoint, "", share)
    for batch_id in _batches_with_ready(connection, endpoint, after_batch, held=held, at_most=1):
        ready += _ready_of(connection, endpoint, batch_id, share)
        after_batch = batch_id
    return ready, after_batch


def unmark_published(connection: Connection, ids: Sequence[str]) -> None:
    """Takes the published mark from those of `ids` that nobody claimed: their message is known to be lost."""
    for start in range(0, len(ids), MAX_ROWS):
        connection.execute(_UNMARK, {"ids": sorted(ids)[start : start + MAX_ROWS]})


def unmark_published_before(connection: Connection, endpoint: str, before_ms: int) -> int:
    """Number of jobs (at most 500) published before `before_ms` and unclaimed, now ready to be published again."""
    query = {"of_endpoint": endpoint, "before_ms": before_ms}
    ids = list(connection.execute(_PUBLISHED_BEFORE, query).scalars())
    unmark_published(connection, ids)
    return len(ids)


def _ready_of(connection: Connection, endpoint: str, batch_id: str, at_most: int) -> list[Due]:
    if at_most <= 0:
        return []
    query = {"of_endpoint": endpoint, "of_batch": batch_id, "at_most": at_most}
    return [Due(*row) for row in connection.execute(_READY_OF_BATCH, query)]


def _batches_with_ready(
    connection: Connection, endpoint: str, after: str, *, held: Collection[str], at_most: int
) -> list[str]:
    """Ids of batches with ready jobs, in turn from the one behind `after`; one index step for each."""
    found: list[str] = []
    seen: set[str] = set()
    wrapped = False
    while len(found) < at_most:
        query = {"of_endpoint": endpoint, "after": after}
        batch_id = connection.execute(_NEXT_BATCH, query).scalar_one()
        if batch_id is None and not wrapped:
            wrapped, after = True, ""
            continue
        if batch_id is None or batch_id in seen:
            break
        seen.add(batch_id)
        after = batch_id
        if batch_id not in held:
            found.append(batch_id)
    return found


def mark_published(connection: Connection, ids: Sequence[str], now_ms: int) -> None:
    """Marks jobs as handed to the broker; one that waited is queued again."""
    if ids:
        connection.execute(_MARK_PUBLISHED, {"ids": sorted(ids), "now_ms": now_ms})
