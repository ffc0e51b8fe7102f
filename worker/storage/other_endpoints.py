"""Open jobs of other endpoints that no worker serves. They may be left from before the address was changed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, func, literal_column, select

from schemas.job import JobState
from worker.storage.doctor import fetch_live_endpoints
from worker.storage.tables import is_in, is_published, is_ready, jobs

MOST_COUNTED = 10_000
_MOST_ENDPOINTS = 20


def fetch_left_elsewhere(connection: Connection, endpoint: str, *, now_ms: int) -> dict[str, int]:
    """The number of open jobs by endpoint, for endpoints other than `endpoint` that no live worker serves.

    Sorted by endpoint, at most 20. Each number is at most `MOST_COUNTED`: the cost does not grow with the backlog.
    """
    served = {endpoint, *fetch_live_endpoints(connection, now_ms=now_ms)}
    found: dict[str, int] = {}
    # One condition for each partial index whose first column is the endpoint.
    for is_open in (is_ready(), is_published(), is_in(JobState.WAITING)):
        name = ""
        for _ in range(_MOST_ENDPOINTS + len(served)):
            following = (
                select(jobs.c.endpoint).where(is_open, jobs.c.endpoint > name).order_by(jobs.c.endpoint)
            )
            name = connection.execute(following.limit(1)).scalar() or ""
            if not name:
                break
            if name not in served:
                some: Select[Any] = (
                    select(literal_column("1")).where(is_open, jobs.c.endpoint == name).limit(MOST_COUNTED)
                )
                count = connection.execute(select(func.count()).select_from(some.subquery())).scalar_one()
                found[name] = min(MOST_COUNTED, found.get(name, 0) + count)
    return dict(sorted(found.items())[:_MOST_ENDPOINTS])
