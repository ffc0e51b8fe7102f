"""The calls of some jobs: those in flight, and sums over those that have ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from sqlalchemy import ColumnElement, Connection, case, select

from schemas.failure import FailureKind
from schemas.job import JobState
from worker.storage.engine import Ledger
from worker.storage.tables import attempts, jobs, workers

_PAGE = 500
_NEVER_SENT = FailureKind.INVALID_REQUEST.value
_NO_FAILURES = frozenset({"succeeded", "unused", "released", _NEVER_SENT})


@dataclass(frozen=True, slots=True)
class CallSums:
    """Sums over calls that have ended. A failed call that was not retried is the last call of its job."""

    latencies_ms: Counter[int] = field(
        default_factory=Counter
    )  # number of calls by latency in ms; only calls with a result
    failed: Counter[str] = field(
        default_factory=Counter
    )  # number of failed calls by failure kind; `lost`: the worker died
    retried: Counter[str] = field(
        default_factory=Counter
    )  # the same, only failed calls after which the job was called again


def sum_calls(ledger: Ledger, ids: Sequence[str], *, since_ms: int) -> CallSums:
    """Sums over the calls of the jobs `ids` that ended at or after `since_ms`. An id that comes twice counts once.

    Reads in pages, each in its own transaction.
    """
    sums = CallSums()
    unique = list(dict.fromkeys(ids))
    for start in range(0, len(unique), _PAGE):
        statement = (
            select(attempts.c.job_id, attempts.c.outcome, attempts.c.latency_ms, jobs.c.state)
            .select_from(attempts.join(jobs, jobs.c.id == attempts.c.job_id))
            .where(attempts.c.job_id.in_(unique[start : start + _PAGE]), attempts.c.ended_at_ms >= since_ms)
            .order_by(attempts.c.job_id, attempts.c.number)
        )
        with ledger.read() as connection:
            rows = connection.execute(statement).all()
        for row, after in zip_longest(rows, rows[1:]):
            if row.outcome == "succeeded" and row.latency_ms is not None:
                sums.latencies_ms[row.latency_ms] += 1
            if row.outcome in _NO_FAILURES:
                continue
            sums.failed[row.outcome] += 1
            is_last = after is None or after.job_id != row.job_id
            if not is_last or row.state == JobState.SUCCEEDED or not JobState(row.state).is_final:
                sums.retried[row.outcome] += 1
    return sums


# Whether the worker of a running job has a call in flight. One of an older version, or without a row, does not say.
MAY_CALL = workers.c.calls.is_(None) | workers.c.oldest_call_ms.is_not(None)


def when_called(claimed_at_ms: ColumnElement[int]) -> ColumnElement[int]:
    """When the call of a running job began, at the earliest. Beside the row of its worker.

    A job that waits for a permit was claimed long before its call: no call began before the oldest of its worker. Jobs
    are called in the order in which they were claimed, so of several with one time the first one is called.
    """
    return case((claimed_at_ms < workers.c.oldest_call_ms, workers.c.oldest_call_ms), else_=claimed_at_ms)


def fetch_oldest_call(connection: Connection, ids: Sequence[str]) -> tuple[str, int] | None:
    """The job of `ids` (at most 500) whose call began first, and when (ms), if all of them are running; else None.

    None also where all wait for a permit.
    """
    rows = connection.execute(
        select(
            jobs.c.id,
            jobs.c.state,
            jobs.c.claimed_at_ms,
            when_called(jobs.c.claimed_at_ms).label("began_ms"),
            MAY_CALL.label("may_call"),
        )
        .select_from(jobs.outerjoin(workers, workers.c.id == jobs.c.worker_id))
        .where(jobs.c.id.in_(list(ids)))
    ).all()
    if len(rows) < len(ids) or any(row.state != JobState.RUNNING for row in rows):
        return None
    called = [
        (row.began_ms, row.claimed_at_ms, row.id)
        for row in rows
        if row.claimed_at_ms is not None and row.may_call
    ]
    if not called:
        return None
    began_ms, _, id_ = min(called)
    return id_, began_ms
