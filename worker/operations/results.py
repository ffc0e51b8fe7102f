"""The results of a batch, or of the jobs of no batch, and what is missing of them. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from worker.storage.batches import Batch, count_states
from worker.storage.engine import Ledger
from worker.storage.job_list import count_open_lone
from worker.storage.reading import JobOutcome, iterate_batch_outcomes, iterate_lone_outcomes


@dataclass(frozen=True, slots=True)
class Missing:
    """Jobs that have no line of results: `open` ones, and those that were `removed` from the ledger."""

    open: int
    removed: int


def iterate_results(ledger: Ledger, batch: Batch | None) -> Iterator[JobOutcome]:
    """The ended jobs of the batch in the order of its input; without a batch the lone jobs, the oldest first.

    Memory stays flat however many they are; a reader that pauses holds no transaction open.
    """
    return iterate_lone_outcomes(ledger) if batch is None else iterate_batch_outcomes(ledger, batch.id)


def count_missing(ledger: Ledger, batch: Batch | None) -> Missing:
    """What has no result yet, or no more. Lone jobs that were removed are not known."""
    with ledger.read() as connection:
        if batch is None:
            return Missing(count_open_lone(connection), removed=0)
        known = count_states(connection, batch.id)
    left = sum(count for state, count in known.items() if not state.is_final)
    return Missing(left, removed=batch.total - sum(known.values()))
