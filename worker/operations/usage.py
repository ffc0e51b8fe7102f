"""What the answers cost: tokens of all answered calls, summed by model, day, batch or custom_id. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from worker.operations.batches import find_named_batch
from worker.storage.engine import Ledger
from worker.storage.usage_sums import UsageBy, UsageSum, iterate_usage


@dataclass(frozen=True, slots=True)
class UsageGroups:
    """The groups, the most tokens first, days in their order; and the id of the batch they are of, if of one."""

    groups: Iterator[UsageSum]
    batch_id: str | None


@contextmanager
def open_usage(
    ledger: Ledger, by: UsageBy, *, since_ms: int | None, batch: str | None
) -> Iterator[UsageGroups]:
    """The usage recorded at or after `since_ms`, of one batch where it is named by its id or the beginning of it.

    A transaction is open while inside: read the groups at once, and hand them on afterwards. Memory stays flat however
    many there are. Raises what `find_named_batch` raises.
    """
    batch_id = None if batch is None else find_named_batch(ledger, batch).id
    with ledger.read() as connection:
        yield UsageGroups(iterate_usage(connection, by, since_ms=since_ms, batch_id=batch_id), batch_id)
