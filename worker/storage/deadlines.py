"""Deadlines of batches: a batch remembers its own, and its open jobs expire at it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select, update

from worker.storage.batches import note_detail
from worker.storage.tables import MAX_ROWS, is_in, jobs
from worker.storage.wants import OPEN

DEADLINE = "deadline_ms"  # among the details of a batch


def note_deadline(connection: Connection, batch_id: str, at_ms: int | None) -> None:
    """Records the batch's deadline; None: it has none. Its jobs stay: see `find_other_expiry` and `set_expiry`."""
    note_detail(connection, batch_id, DEADLINE, at_ms)


def find_other_expiry(connection: Connection, batch_id: str, at_ms: int) -> list[str]:
    """Ids of open jobs with this home batch that expire at another time, or never; at most 500."""
    some = (
        select(jobs.c.id)
        .where(jobs.c.batch_id == batch_id, is_in(*OPEN), jobs.c.expires_at_ms.is_distinct_from(at_ms))
        .limit(MAX_ROWS)
    )
    return list(connection.execute(some).scalars())


def find_same_expiry(connection: Connection, batch_id: str, at_ms: int) -> list[str]:
    """Ids of open jobs with this home batch that expire then; at most 500."""
    some = (
        select(jobs.c.id)
        .where(jobs.c.batch_id == batch_id, is_in(*OPEN), jobs.c.expires_at_ms == at_ms)
        .limit(MAX_ROWS)
    )
    return list(connection.execute(some).scalars())


def set_expiry(connection: Connection, ids: Sequence[str], at_ms: int | None) -> None:
    """Lets the open jobs of `ids` (at most 500) expire then; None: never."""
    locked = connection.execute(
        select(jobs.c.id).where(jobs.c.id.in_(list(ids)), is_in(*OPEN)).order_by(jobs.c.id).with_for_update()
    )
    found = [row.id for row in locked]
    if found:
        connection.execute(update(jobs).where(jobs.c.id.in_(found)).values(expires_at_ms=at_ms))
