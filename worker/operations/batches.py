"""Batches as people and programs ask for them: listed, found by their names, and counted. Changes nothing."""

from __future__ import annotations

from schemas.job import JobState
from worker.errors import NotFound
from worker.storage.batches import Batch, count_states, fetch_batch, fetch_batches
from worker.storage.cleaning import clean_text
from worker.storage.engine import Ledger


def list_batches(ledger: Ledger, *, limit: int) -> list[tuple[Batch, dict[JobState, int]]]:
    """The latest batches, at most `limit`, the newest first, each with its number of jobs by state."""
    with ledger.read() as connection:
        return [(one, count_states(connection, one.id)) for one in fetch_batches(connection, limit=limit)]


def fetch_latest_batches(ledger: Ledger, *, limit: int) -> list[Batch]:
    """The same batches without their jobs, which costs less."""
    with ledger.read() as connection:
        return fetch_batches(connection, limit=limit)


def find_named_batch(ledger: Ledger, batch_id: str) -> Batch:
    """The batch with this id, or the only one whose id begins with it. Raises NotFound where there is none."""
    with ledger.read() as connection:
        batch = fetch_batch(connection, clean_text(batch_id) or "")
    if batch is None:
        raise NotFound(f"there is no batch {batch_id}: `antrean status` lists the latest")
    return batch


def count_jobs(ledger: Ledger, batch_id: str) -> dict[JobState, int]:
    """The batch's number of jobs by state; states without one may be missing."""
    with ledger.read() as connection:
        return count_states(connection, batch_id)
