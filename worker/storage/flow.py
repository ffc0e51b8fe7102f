"""How fast an endpoint's jobs ended lately, and how many are open in each batch."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import Connection, func, select, union_all

from schemas.job import JobState
from worker.policy.expected_end import Flow
from worker.storage.tables import is_in, is_published, is_ready, jobs


def fetch_flow(connection: Connection, endpoint: str, *, since_ms: int) -> Flow:
    """The endpoint's jobs that succeeded at or after `since_ms`, and whether one is in a call now."""
    count, first_ms, last_ms = connection.execute(
        select(func.count(), func.min(jobs.c.ended_at_ms), func.max(jobs.c.ended_at_ms)).where(
            jobs.c.ended_at_ms >= since_ms, jobs.c.endpoint == endpoint, is_in(JobState.SUCCEEDED)
        )
    ).one()
    running = select(jobs.c.id).where(jobs.c.endpoint == endpoint, is_in(JobState.RUNNING)).limit(1)
    is_idle = connection.execute(running).first() is None
    return Flow(int(count), first_ms, last_ms if is_idle else None)


def count_open_by_batch(connection: Connection, endpoint: str) -> Counter[str]:
    """The number of the endpoint's jobs that wait for a call, by home batch ("" for jobs of none)."""
    # One part for each partial index.
    parts = [
        select(jobs.c.batch_id, func.count())
        .where(jobs.c.endpoint == endpoint, is_so)
        .group_by(jobs.c.batch_id)
        for is_so in (is_ready(), is_published(), is_in(JobState.WAITING))
    ]
    found: Counter[str] = Counter()
    for batch_id, count in connection.execute(union_all(*parts)):
        found[batch_id] += int(count)
    return found
