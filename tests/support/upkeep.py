"""A broker that does as it is told, and workers' rows."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.job import Due
from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    job_row,
    state,
)
from worker.errors import BrokerAway
from worker.storage.engine import Ledger
from worker.storage.workers import register_worker


class Broker:
    """Takes what is published, unless it is away; forgets everything on demand."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.taken: list[str] = []
        self.states: set[str] = set()
        self.is_away = False
        self.has_mark = True
        self.is_purged = False
        self.lying: list[str] = []

    def publish(self, due: Sequence[Due]) -> None:
        self.states |= {state(self.ledger, job.id) for job in due}  # committed before it is published
        self.states |= {"unmarked" for job in due if job_row(self.ledger, job.id).published_at_ms is None}
        if self.is_away:
            raise BrokerAway("gone")
        self.taken += [job.id for job in due]

    def is_present(self) -> bool:
        return self.has_mark

    def set(self) -> None:
        self.has_mark = True

    def is_empty(self) -> bool:
        return self.is_purged

    def fetch_lying_jobs(self, at_most: int) -> frozenset[str]:
        return frozenset(self.lying)


def add_worker(ledger: Ledger, id_: str, clock: FakeClock, *, slots: int = 4, lease_ms: int = 2000) -> None:
    ledger.run(
        lambda c: register_worker(
            c,
            id_,
            endpoint=ENDPOINT,
            hostname="h",
            pid=1,
            slots=slots,
            lease_ms=lease_ms,
            now_ms=clock.now_ms(),
        )
    )
