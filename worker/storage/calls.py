"""The calls of some jobs: those in flight, and sums over those that have ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

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


def fetch_oldest_call(connection: Connection, ids: Sequence[str]) -> tuple[str, int] | None:
    """The job of `ids` (at most 500) that was claimed first, and when (ms), if all of them are running; else None."""
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
