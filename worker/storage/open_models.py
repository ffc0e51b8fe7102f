"""The models of the jobs that wait to be called, for people. Reads rows, not only an index: at most so many."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Select, func, select

from schemas.job import JobState
from worker.storage.tables import batches, is_in, is_ready, jobs

_HELD = select(batches.c.id).where(batches.c.held_at_ms.is_not(None))


def count_open_models(connection: Connection, endpoint: str) -> Mapping[str, int]:
    """All jobs by model that are ready or wait for a time; not those of a stopped run, nor those that workers have."""
    return _count(connection, _of(endpoint).where(is_ready() | is_in(JobState.WAITING)))


def count_first_models(
    connection: Connection, endpoint: str, *, at_most: int, batch_id: str | None = None
) -> Mapping[str, int]:
    """The first ready jobs by model, at most `at_most`, the oldest batch first: what nothing can call stays there.

    Of one batch, where it is named: those whose home it is.
    """
    # The order of an index: no row of a large backlog is read beyond these.
    order = jobs.c.batch_id, jobs.c.priority, jobs.c.id
    ready = _of(endpoint).where(is_ready()).order_by(*order).limit(at_most)
    return _count(connection, ready if batch_id is None else ready.where(jobs.c.batch_id == batch_id))


def _of(endpoint: str) -> Select[tuple[str]]:
    return select(jobs.c.model).where(jobs.c.endpoint == endpoint, jobs.c.batch_id.not_in(_HELD))


def _count(connection: Connection, models: Select[tuple[str]]) -> Mapping[str, int]:
    found = models.subquery()
    rows = connection.execute(select(found.c.model, func.count()).group_by(found.c.model))
    return {str(model): count for model, count in rows}
