"""What is left to do for an endpoint. A draining worker ends when nothing is left."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, func, select

from schemas.job import JobState
from worker.storage.batches import fetch_held
from worker.storage.tables import IDLE, is_in, is_published, is_ready, jobs

HELD_ADVICE = "the same `antrean run` goes on, `antrean cancel BATCH` gives it up"
"""The advice for jobs of a held batch."""


def has_work(connection: Connection, endpoint: str) -> bool:
    """Whether this endpoint has open jobs, also running ones of other workers.

    Of held batches only running jobs count.
    """
    of_endpoint = select(jobs.c.id).where(jobs.c.endpoint == endpoint).limit(1)
    if connection.execute(of_endpoint.where(is_in(JobState.RUNNING))).first() is not None:
        return True
    is_unheld = jobs.c.batch_id.not_in(fetch_held(connection, endpoint))
    # One query for each condition: each has its own index.
    return any(
        connection.execute(of_endpoint.where(is_so, is_unheld)).first() is not None
        for is_so in (is_in(JobState.WAITING), is_published(), is_ready())
    )


def count_held(connection: Connection, endpoint: str) -> Mapping[str, int]:
    """The number of this endpoint's jobs that wait for a call in held batches, by batch id, sorted by id."""
    statement = (
        select(jobs.c.batch_id, func.count().label("left"))
        .where(jobs.c.batch_id.in_(fetch_held(connection, endpoint)), is_in(*IDLE))
        .group_by(jobs.c.batch_id)
        .order_by(jobs.c.batch_id)
    )
    return {row.batch_id: int(row.left) for row in connection.execute(statement)}


def count_failed_since(connection: Connection, endpoint: str, *, since_ms: int) -> int:
    """The number of this endpoint's jobs that failed or expired at or after `since_ms`, and were not queued again."""
    statement = (
        select(func.count())
        .select_from(jobs)
        .where(
            jobs.c.ended_at_ms >= since_ms,
            jobs.c.endpoint == endpoint,
            is_in(JobState.FAILED, JobState.EXPIRED),
        )
    )
    return int(connection.execute(statement).scalar_one())
