"""What the answers cost: tokens of all answered calls, summed by model, day, batch or custom_id. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from worker.errors import NotFound
from worker.storage.batches import fetch_batch
from worker.storage.cleaning import clean_text
from worker.storage.engine import Ledger
from worker.storage.usage_sums import UsageBy, UsageSum, iterate_usage
from worker.text.printable import printable


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
    many there are. Raises NotFound where there is no such batch.
    """
    batch_id = clean_text(batch)
    with ledger.read() as connection:
        if batch_id is not None:
            chosen = fetch_batch(connection, batch_id) if batch_id else None
            if chosen is None:
                raise NotFound(f"there is no batch {printable(batch_id)}: `antrean batches` lists them")
            batch_id = chosen.id
        yield UsageGroups(iterate_usage(connection, by, since_ms=since_ms, batch_id=batch_id), batch_id)
