"""Jobs that wait at a shut gate: some are chosen as probes, and all become due when the gate opens."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import BindParameter, Connection, bindparam, select, update

from schemas.failure import FailureKind
from schemas.job import Due, JobState
from worker.storage.due import choose_untried, mark_published
from worker.storage.tables import MAX_ROWS, is_in, is_published, is_ready, jobs

SPREAD_MS = 1000  # the jobs of one step become due within this time
_SOON_MS = 1500  # a job that is due within this time is not changed
_LOOKED_AT = 8  # candidates of each kind: more than the refused jobs that a gate remembers

_endpoint: BindParameter[str] = bindparam("of_endpoint")
_IS_BLOCKED = jobs.c.blocked_since_ms.is_not(None)
_BLOCKED = (
    select(jobs.c.id)
    .where(
        is_in(JobState.WAITING),
        jobs.c.endpoint == _endpoint,
        _IS_BLOCKED,
        # A rate-limited job waits for its own time.
        jobs.c.failure_kind != FailureKind.RATE_LIMITED.value,
        jobs.c.not_before_ms > bindparam("soon_ms"),
    )
    .order_by(jobs.c.not_before_ms)
    .limit(MAX_ROWS)
    .with_for_update(skip_locked=True)
)
_BRING_FORWARD = (
    update(jobs)
    .where(jobs.c.id == bindparam("job_id"), is_in(JobState.WAITING))
    .values(not_before_ms=bindparam("due_ms"))
)
_WAITING_DUE = (
    select(jobs.c.id, jobs.c.priority, jobs.c.is_bulk)
    .where(
        is_in(JobState.WAITING),
        jobs.c.endpoint == _endpoint,
        jobs.c.not_before_ms <= bindparam("now_ms"),
        jobs.c.batch_id.not_in(bindparam("held", expanding=True)),
    )
    .limit(_LOOKED_AT)
    .with_for_update(skip_locked=True)
)
_CALLED_BEFORE = (
    select(jobs.c.id, jobs.c.priority, jobs.c.is_bulk)
    .where(
        is_ready(),
        jobs.c.endpoint == _endpoint,
        jobs.c.batch_id.not_in(bindparam("held", expanding=True)),
    )
    .order_by(jobs.c.batch_id, jobs.c.priority, jobs.c.id)
    .limit(_LOOKED_AT)
    .with_for_update(skip_locked=True)
)
# First jobs that do not wait at the gate, then those at the gate, the earliest due first.
_UNBLOCKED_DUE = _WAITING_DUE.where(jobs.c.blocked_since_ms.is_(None)).order_by(jobs.c.not_before_ms)
_BLOCKED_DUE = _WAITING_DUE.where(_IS_BLOCKED).order_by(jobs.c.not_before_ms)
# One condition for each partial index: the cost does not grow with the number of ended jobs.
_SOME_OPEN = tuple(
    select(jobs.c.id).where(is_open, jobs.c.endpoint == _endpoint).limit(2)
    for is_open in (is_in(JobState.RUNNING), is_published(), is_ready(), is_in(JobState.WAITING))
)


def wake_blocked(connection: Connection, endpoint: str, *, now_ms: int) -> int:
    """Makes jobs that wait at the endpoint's gate due within a second, at most 500. Returns their number.

    Call again with `now_ms` a second later, until it returns less than 500: so they become due in order, and not all at
    once.
    """
    found = connection.execute(_BLOCKED, {"of_endpoint": endpoint, "soon_ms": now_ms + _SOON_MS})
    ids = list(found.scalars())
    if ids:
        due_ms = {job_id: now_ms + place * SPREAD_MS // len(ids) for place, job_id in enumerate(ids)}
        connection.execute(
            _BRING_FORWARD, [{"job_id": job_id, "due_ms": due_ms[job_id]} for job_id in sorted(ids)]
        )
    return len(ids)


def take_probes(
    connection: Connection,
    endpoint: str,
    *,
    at_most: int = 1,
    after_batch: str,
    now_ms: int,
    held: Collection[str] = (),
    refused: Collection[str] = (),
    is_for_others: bool = False,
) -> tuple[list[Due], str]:
    """At most so many different jobs for probes, marked as published; and the batch after which the next call begins.

    Jobs that were not refused come first, since a refusal may be one job's own. Among them, jobs that were never called
    come before those that wait. With `is_for_others`, none of `refused` is taken.
    """
    untried, after_batch = choose_untried(connection, endpoint, _LOOKED_AT, after_batch, now_ms, held)
    query = {"of_endpoint": endpoint, "now_ms": now_ms, "held": list(held)}
    candidates = [
        *untried,
        *(Due(*row) for row in connection.execute(_UNBLOCKED_DUE, query)),
        *(Due(*row) for row in connection.execute(_BLOCKED_DUE, query)),
        *(Due(*row) for row in connection.execute(_CALLED_BEFORE, query)),
    ]
    candidates = list({job.id: job for job in candidates}.values())
    others = [job for job in candidates if job.id not in refused]
    again = [] if is_for_others else [job for job in candidates if job.id in refused]
    chosen = [*others, *again][:at_most]
    mark_published(connection, [job.id for job in chosen], now_ms)
    return chosen, after_batch


def has_open_jobs(connection: Connection, endpoint: str) -> bool:
    """Whether the endpoint has an open job."""
    return any(connection.execute(some, {"of_endpoint": endpoint}).first() is not None for some in _SOME_OPEN)


def has_other_jobs(connection: Connection, endpoint: str, job_id: str) -> bool:
    """Whether the endpoint has an open job besides `job_id`."""
    query = {"of_endpoint": endpoint}
    return any(id_ != job_id for some in _SOME_OPEN for id_ in connection.execute(some, query).scalars())
