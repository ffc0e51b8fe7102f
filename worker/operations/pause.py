"""An endpoint is paused: no worker claims jobs for it until it is resumed.

Calls in flight end and are recorded. Jobs may still be submitted.
"""

from __future__ import annotations

from worker.clock import SystemClock
from worker.storage import pauses
from worker.storage.engine import Ledger, Transaction
from worker.storage.pauses import Pause


def pause_endpoint(ledger: Ledger, endpoint: str, reason: str | None) -> tuple[bool, Pause | None]:
    """Whether the endpoint was not paused before, and its pause; None where it was resumed in the same moment.

    A pause that is there already stays as it is, with its own reason.
    """

    def work(connection: Transaction) -> tuple[bool, Pause | None]:
        is_new = pauses.pause(connection, endpoint, reason, SystemClock().now_ms())
        return is_new, pauses.fetch_pause(connection, endpoint)

    return ledger.run(work)


def resume_endpoint(ledger: Ledger, endpoint: str) -> Pause | None:
    """The pause that was ended; None where the endpoint was not paused, and nothing is changed."""

    def work(connection: Transaction) -> Pause | None:
        before = pauses.fetch_pause(connection, endpoint)
        return before if pauses.resume(connection, endpoint) else None

    return ledger.run(work)
