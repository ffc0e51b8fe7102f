"""Long changes of the ledger, in short transactions."""

from __future__ import annotations

from collections.abc import Callable

from worker.storage.engine import Ledger, Transaction
from worker.storage.tables import MAX_ROWS


def repeat_steps(ledger: Ledger, step: Callable[[Transaction], int]) -> None:
    """Runs `step` until it changes fewer than 500 rows, each time in a transaction of its own.

    So workers get their turn between two steps. Raises DatabaseAway; the steps that were done stay done.
    """
    while ledger.run(step) >= MAX_ROWS:
        pass
