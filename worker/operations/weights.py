"""A batch's weight: its share of the endpoint's tokens beside other batches."""

from __future__ import annotations

from functools import partial

from worker.errors import InputError
from worker.policy.fairness import parse_weight
from worker.storage.batches import Batch
from worker.storage.engine import Ledger
from worker.storage.weights import set_weight
from worker.text.printable import printable


def read_weight(text: str) -> float:
    """The weight that `text` names. Raises InputError."""
    try:
        return parse_weight(text)
    except ValueError as exc:
        raise InputError(f"the weight {printable(text)} {exc}") from None


def set_batch_weight(ledger: Ledger, batch: Batch, weight: float | None) -> None:
    """Sets the batch's weight, or changes it: workers follow within seconds. None changes nothing."""
    if weight is not None:
        ledger.run(partial(set_weight, batch_id=batch.id, weight=weight))
