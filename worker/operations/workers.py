"""The workers of a ledger. Changes nothing."""

from __future__ import annotations

from worker.storage.engine import Ledger
from worker.storage.workers import WorkerFacts, fetch_workers


def list_workers(ledger: Ledger) -> list[WorkerFacts]:
    """The workers that have not ended, the oldest first. Raises DatabaseAway."""
    with ledger.read() as connection:
        return fetch_workers(connection)
