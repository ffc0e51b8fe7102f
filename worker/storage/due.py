"""Statements for the relay: which jobs are due, and the marks of jobs that were published to the broker."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from sqlalchemy import BindParameter, Connection, bindparam, func, select, text, update

from schemas.job import TARGETS, Due, JobState, Move
from worker.policy.fairness import Account, Waiting, give_back, share_room
from worker.storage.batch_turns import Turn, find_turns
from worker.storage.by_model import ModelChoice
from worker.storage.claims import SOLO_AFTER_LOSSES
from worker.storage.tables import MAX_ROWS, is_in, is_published, is_ready, jobs, workers

Describe = Callable[[Connection, Sequence[Turn]], Sequence[Waiting]]
"""Tells the weight of batches, and what a job of each takes."""
START = Account()
_endpoint: BindParameter[str] = bindparam("of_endpoint")
_LOOKED_AT = 32  # how many ready jobs of a batch are searched for one that was never tried
# Solo jobs do not count: they may wait for long until they can run alone, and must not fill the window meanwhile.
_COUNT_PUBLISHED = select(func.count()).where(
    is_published(), jobs.c.endpoint == _endpoint, jobs.c.losses < SOLO_AFTER_LOSSES
)
_COUNT_LIVE_SLOTS = select(func.coalesce(func.sum(workers.c.slots), 0)).where(
    workers.c.ended_at_ms.is_(None), workers.c.endpoint == _endpoint
)
# Jobs whose batch is held do not count either: they are not claimed before the batch goes on.
_IS_UNHELD = jobs.c.batch_id.not_in(bindparam("held", expanding=True))
_COUNT_PUBLISHED_UNHELD = _COUNT_PUBLISHED.where(_IS_UNHELD)
# As text: SQLAlchemy would write `is_bulk = 0` for SQLite, which then does not use the partial index of lone jobs.
_IS_LONE = text("NOT jobs.is_bulk")
_COUNT_PUBLISHED_LONE = _COUNT_PUBLISHED_UNHELD.where(_IS_LONE)
_DUE = select(jobs.c.id, jobs.c.priority, jobs.c.is_bulk).where(jobs.c.endpoint == _endpoint)
_READY_OF_BATCH = (
    _DUE.add_columns(jobs.c.claims)
    .where(is_ready(), jobs.c.batch_id == bindparam("of_batch"))
    .order_by(jobs.c.priority, jobs.c.id)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_WAITING_DUE = (
    _DUE.where(is_in(JobState.WAITING), jobs.c.not_before_ms <= bindparam("now_ms"))
    .order_by(jobs.c.not_before_ms)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_DUE_OF_BATCH = _WAITING_DUE.where(jobs.c.batch_id == bindparam("of_batch"))
_LONE_DUE = _WAITING_DUE.where(_IS_LONE, _IS_UNHELD)
# Of any batch: in the turn of its batch, a lone job that is published again would wait for bulk jobs.
_LONE_READY = (
    _DUE.where(is_ready(), _IS_LONE, _IS_UNHELD)
    .order_by(jobs.c.priority, jobs.c.id)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_ids: BindParameter[Sequence[str]] = bindparam("ids", expanding=True)
# Guarded by state: a row whose state has changed since it was selected is not changed (SQLite has no row locks).
_MARK_PUBLISHED = (
    update(jobs)
    .where(jobs.c.id.in_(_ids), jobs.c.state.in_(("queued", "waiting")))
    .values(state=TARGETS[Move.RELAY].value, published_at_ms=bindparam("now_ms"), not_before_ms=None)
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
_RENEW_MARKS = (
    update(jobs)
    .where(
        jobs.c.id.in_(
            select(jobs.c.id)
            .where(jobs.c.id.in_(_ids), is_published())
            .order_by(jobs.c.id)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
    )
    .values(published_at_ms=bindparam("now_ms"))
)
_MARKED_AMONG = select(jobs.c.id).where(
    jobs.c.id.in_(_ids), is_published(), jobs.c.published_at_ms < bindparam("before_ms")
)
_MARKED_BEFORE = (
    select(jobs.c.id)
    .where(is_published(), jobs.c.endpoint == _endpoint, jobs.c.published_at_ms < bindparam("before_ms"))
    .order_by(jobs.c.published_at_ms)
    .limit(MAX_ROWS)
)
_STRAYS = select(jobs.c.id).where(jobs.c.id.in_(_ids), is_published(), jobs.c.endpoint != _endpoint)
_PUBLISHED_BEFORE = _MARKED_BEFORE.with_for_update(skip_locked=True)
_PUBLISHED_AFTER = (
    select(jobs.c.id)
    .where(is_published(), jobs.c.endpoint == _endpoint, jobs.c.published_at_ms > bindparam("after_ms"))
    .order_by(jobs.c.published_at_ms)
    .limit(MAX_ROWS)
    .with_for_update(skip_locked=True)
)
_LATEST_MARK = select(func.max(jobs.c.published_at_ms)).where(is_published(), jobs.c.endpoint == _endpoint)


def count_published(connection: Connection, endpoint: str, *, held: Collection[str] = ()) -> int:
    """The number of jobs that are published and not claimed, without solo jobs and jobs of `held` batches.

    The relay's window is its bound.
    """
    statement = _COUNT_PUBLISHED_UNHELD if held else _COUNT_PUBLISHED
    query = {"of_endpoint": endpoint, "held": list(held)} if held else {"of_endpoint": endpoint}
    return int(connection.execute(statement, query).scalar_one())


def count_live_slots(connection: Connection, endpoint: str) -> int:
    """The number of slots of all workers of this endpoint that have not ended."""
    return int(connection.execute(_COUNT_LIVE_SLOTS, {"of_endpoint": endpoint}).scalar_one())


def take_lone_due(
    connection: Connection,
    endpoint: str,
    *,
    window: int,
    now_ms: int,
    held: Collection[str] = (),
    only: ModelChoice | None = None,
) -> list[Due]:
    """Lone jobs to publish now, marked as published. At most `window` lone jobs are in the broker then.

    Bulk jobs have another window: a retry of a lone job never waits for room behind bulk jobs. `only`: as `take_due`.
    """
    query = {"of_endpoint": endpoint, "now_ms": now_ms, "held": list(held)}
    room = min(window, MAX_ROWS) - connection.execute(_COUNT_PUBLISHED_LONE, query).scalar_one()
    if room <= 0:
        return []
    query["at_most"] = room
    if only is None:
        retries, ready = (
            [Due(*row) for row in connection.execute(some, query)] for some in (_LONE_DUE, _LONE_READY)
        )
    else:
        retries = only.lone_due(connection, endpoint, -(-room // 2), held, now_ms)
        ready = only.lone_ready(connection, endpoint, room - len(retries), held)
    due = _mix(retries, ready, room)
    mark_published(connection, [job.id for job in due], now_ms)
    return due


def _alike(_: Connection, turns: Sequence[Turn]) -> list[Waiting]:
    return [Waiting(turn.batch_id) for turn in turns]


def take_due(
    connection: Connection,
    endpoint: str,
    *,
    room: int,
    account: Account = START,
    now_ms: int,
    held: Collection[str] = (),
    prefer_untried: bool = False,
    only: ModelChoice | None = None,
    describe: Describe = _alike,
) -> tuple[list[Due], Account]:
    """At most `room` jobs to publish now, marked as published; and the account with which the next call begins.

    Jobs of `held` batches are left out. Lone jobs come first, then those of batches, by deficit round robin: of the
    tokens each has the share that its weight is of all weights. Without `describe`, all batches and jobs are alike.
    Retries that are due count towards the share of their batch: a batch whose jobs are refused again and again takes
    nothing from the others, nor from its own jobs that were never tried.
    With `prefer_untried`, a job that was never called comes before all others, of any batch: if there is room for one
    probe only, it must not be the job that was refused. With `only`, jobs that it does not want are left there.
    Commit before publishing: a message that is lost is published again; one for a job that is not committed is not.
    """
    room = min(room, MAX_ROWS)
    if room <= 0:
        return [], account
    due: list[Due] = []
    if prefer_untried:
        due, after = choose_untried(connection, endpoint, room, account.after, now_ms, held)
        account = replace(account, after=after)
    if not due:
        return _take_shares(connection, endpoint, room, account, now_ms, held, only, describe)
    mark_published(connection, [job.id for job in due], now_ms)
    return due, account


def _take_shares(
    connection: Connection,
    endpoint: str,
    room: int,
    account: Account,
    now_ms: int,
    held: Collection[str],
    only: ModelChoice | None,
    describe: Describe,
) -> tuple[list[Due], Account]:
    # A choice counts what it takes: with one, no more is read than is used.
    retries = _due_of(connection, endpoint, "", room if only is None else -(-room // 2), now_ms, only)
    lone = _ready_of(connection, endpoint, "", room if only is None else room - len(retries), only)
    # Retries of lone jobs come first, but take half of the window at most: they may be due again and again.
    due = retries[: -(-room // 2)]
    due += lone[: room - len(due)]
    later = retries[-(-room // 2) :]
    found = find_turns(
        connection, endpoint, after=account.after, held=held, at_most=room - len(due), now_ms=now_ms
    )
    turns = {turn.batch_id: turn for turn in found}
    waiting = list(describe(connection, found)) if found else []
    marked = 0
    while waiting and len(due) < room:
        mark_published(connection, [job.id for job in due[marked:]], now_ms)
        marked = len(due)
        shares = share_room(account, waiting, room=room - len(due))
        unsent: dict[str, int] = {}
        for batch_id, count in shares.jobs.items():
            part = _share_of(connection, endpoint, turns[batch_id], count, now_ms, only)
            due += part
            if len(part) < count:
                unsent[batch_id] = count - len(part)
        account = give_back(shares.account, waiting, unsent)
        # What those leave is shared out among the batches that have more.
        waiting = [one for one in waiting if one.batch_id not in unsent]
    due += later[: room - len(due)]
    mark_published(connection, [job.id for job in due[marked:]], now_ms)
    return due, account


def _share_of(
    connection: Connection, endpoint: str, turn: Turn, share: int, now_ms: int, only: ModelChoice | None
) -> list[Due]:
    part = share if only is None or not turn.has_ready else -(-share // 2)
    retries = _due_of(connection, endpoint, turn.batch_id, part, now_ms, only) if turn.has_due else []
    part = share if only is None else share - len(retries)
    ready = _ready_of(connection, endpoint, turn.batch_id, part, only) if turn.has_ready else []
    return _mix(retries, ready, share)


def _mix(retries: list[Due], ready: list[Due], room: int) -> list[Due]:
    """At most `room` jobs: retries first. They take at most half of it if there are enough ready jobs for the rest."""
    first = retries[: max(-(-room // 2), room - len(ready))]
    return first + ready[: room - len(first)]


def choose_untried(
    connection: Connection, endpoint: str, room: int, after_batch: str, now_ms: int, held: Collection[str]
) -> tuple[list[Due], str]:
    """Jobs never called, of the first batch with any among its first ready jobs (32, or `room`). Not marked."""
    turns = find_turns(connection, endpoint, after=after_batch, held=held, at_most=_LOOKED_AT, now_ms=now_ms)
    for batch_id in ("", *(turn.batch_id for turn in turns if turn.has_ready)):
        query = {"of_endpoint": endpoint, "of_batch": batch_id, "at_most": max(room, _LOOKED_AT)}
        rows = connection.execute(_READY_OF_BATCH, query).all()
        untried = [Due(row.id, row.priority, row.is_bulk) for row in rows if row.claims == 0]
        if untried:
            return untried[:room], batch_id or after_batch
    return [], after_batch


def unmark_published(connection: Connection, ids: Sequence[str]) -> None:
    """Removes the published mark from unclaimed jobs of `ids`, whose message is known to be lost."""
    for start in range(0, len(ids), MAX_ROWS):
        connection.execute(_UNMARK, {"ids": sorted(ids)[start : start + MAX_ROWS]})


def unmark_strays(connection: Connection, ids: Sequence[str], endpoint: str) -> None:
    """Removes the published mark from jobs of `ids` that belong to another endpoint: they are published again.

    An older version put the hints of all endpoints into one queue, so that a worker may read those of others.
    """
    query = {"ids": sorted(ids), "of_endpoint": endpoint}
    strays = connection.execute(_STRAYS, query).scalars()
    unmark_published(connection, list(strays))


def unmark_published_before(
    connection: Connection, endpoint: str, before_ms: int, *, after_ms: int | None = None
) -> int:
    """Removes the published mark of unclaimed jobs (at most 500) that were marked before `before_ms`; their number.

    With `after_ms`, also of those that were marked after it: a mark in the future was made by a clock that was ahead,
    so its age is not known.
    """
    query = {"of_endpoint": endpoint, "before_ms": before_ms}
    ids = list(connection.execute(_PUBLISHED_BEFORE, query).scalars())
    if after_ms is not None and len(ids) < MAX_ROWS:
        later = connection.execute(
            _PUBLISHED_AFTER, {"of_endpoint": endpoint, "after_ms": after_ms}
        ).scalars()
        ids += list(later)[: MAX_ROWS - len(ids)]
    unmark_published(connection, ids)
    return len(ids)


def fetch_marked_among(connection: Connection, ids: Collection[str], *, before_ms: int) -> list[str]:
    """The ids among `ids` of unclaimed jobs that were marked as published before `before_ms`."""
    found: list[str] = []
    every = sorted(ids)
    for start in range(0, len(every), MAX_ROWS):
        query = {"ids": every[start : start + MAX_ROWS], "before_ms": before_ms}
        found += connection.execute(_MARKED_AMONG, query).scalars()
    return found


def fetch_marked_before(connection: Connection, endpoint: str, *, before_ms: int) -> list[str]:
    """Ids of unclaimed jobs (at most 500) that were marked as published before `before_ms`, oldest mark first."""
    query = {"of_endpoint": endpoint, "before_ms": before_ms}
    return list(connection.execute(_MARKED_BEFORE, query).scalars())


def renew_marks(connection: Connection, ids: Sequence[str], now_ms: int) -> None:
    """Sets the published mark of unclaimed jobs of `ids` to `now_ms`: their messages are known to exist."""
    for start in range(0, len(ids), MAX_ROWS):
        connection.execute(_RENEW_MARKS, {"ids": sorted(ids)[start : start + MAX_ROWS], "now_ms": now_ms})


def fetch_mark_bound(connection: Connection, endpoint: str, *, now_ms: int) -> int:
    """A time (ms) that is later than all published marks of the endpoint, whichever clock made them."""
    latest: int | None = connection.execute(_LATEST_MARK, {"of_endpoint": endpoint}).scalar()
    return max(now_ms, now_ms if latest is None else latest) + 1


def _ready_of(
    connection: Connection, endpoint: str, batch_id: str, at_most: int, only: ModelChoice | None = None
) -> list[Due]:
    if at_most <= 0:
        return []
    if only is not None:
        return only.ready_of(connection, endpoint, batch_id, at_most)
    query = {"of_endpoint": endpoint, "of_batch": batch_id, "at_most": at_most}
    rows = connection.execute(_READY_OF_BATCH, query)
    return [Due(row.id, row.priority, row.is_bulk) for row in rows]


def _due_of(
    connection: Connection,
    endpoint: str,
    batch_id: str,
    at_most: int,
    now_ms: int,
    only: ModelChoice | None = None,
) -> list[Due]:
    if only is not None:
        return only.due_of(connection, endpoint, batch_id, at_most, now_ms)
    query = {"of_endpoint": endpoint, "of_batch": batch_id, "at_most": at_most, "now_ms": now_ms}
    return [Due(*row) for row in connection.execute(_DUE_OF_BATCH, query)]


def mark_published(connection: Connection, ids: Sequence[str], now_ms: int) -> None:
    """Marks jobs as published; a waiting job becomes queued."""
    if ids:
        connection.execute(_MARK_PUBLISHED, {"ids": sorted(ids), "now_ms": now_ms})
