"""Calls for some jobs: those in flight, and what those that ended came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from schemas.failure import FailureKind
from schemas.job import JobState
from worker.storage.engine import Ledger
from worker.storage.tables import attempts, jobs

_PAGE = 500
_NEVER_SENT = FailureKind.INVALID_REQUEST.value
_NO_FAILURES = frozenset({"succeeded", "unused", "released", _NEVER_SENT})


@dataclass(frozen=True, slots=True)
class CallSums:
    """Sums over calls. A call that failed and was not tried again was the last of its job."""

    latencies_ms: Counter[int] = field(
        default_factory=Counter
    )  # calls by their latency, of those with a result
    failed: Counter[str] = field(
        default_factory=Counter
    )  # calls by the kind of their failure; lost: its worker died
    retried: Counter[str] = field(
        default_factory=Counter
    )  # of them, those after which the job was tried again


def sum_calls(ledger: Ledger, ids: Sequence[str], *, since_ms: int) -> CallSums:
    """The calls for `ids` that ended at or after `since_ms`. An id that comes twice counts once.

    Read in pages, each in a transaction of its own.
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
        for row, after in zip(rows, [*rows[1:], None], strict=True):
            if row.outcome == "succeeded" and row.latency_ms is not None:
                sums.latencies_ms[row.latency_ms] += 1
            if row.outcome in _NO_FAILURES:
                continue
            sums.failed[row.outcome] += 1
            is_last = after is None or after.job_id != row.job_id
            if not is_last or row.state == JobState.SUCCEEDED or not JobState(row.state).is_final:
                sums.retried[row.outcome] += 1
    return sums


def fetch_oldest_call(connection: Connection, ids: Sequence[str]) -> tuple[str, int] | None:
    """Of `ids` (at most 500): the job that was claimed first, and when (in ms), where each of them is being called.

    None while one of them is queued, waits, or has ended.
    """
    rows = connection.execute(
        select(jobs.c.id, jobs.c.state, jobs.c.claimed_at_ms).where(jobs.c.id.in_(list(ids)))
    ).all()
    if len(rows) < len(ids) or any(row.state != JobState.RUNNING for row in rows):
        return None
    called = [(row.claimed_at_ms, row.id) for row in rows if row.claimed_at_ms is not None]
    if not called:
        return None
    at_ms, id_ = min(called)
    return id_, at_ms
