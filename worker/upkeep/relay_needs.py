"""What the relay needs of the broker and of the endpoints."""

from __future__ import annotations

from typing import Protocol

from schemas.job import Due
from worker.policy.fairness import Account
from worker.policy.gates import Admission
from worker.storage.due import Describe
from worker.storage.engine import Transaction


class Epoch(Protocol):
    """A mark in the broker that is gone when the broker forgot everything."""

    def is_present(self) -> bool:
        """Whether the broker still knows us. Raises BrokerAway."""

    def set(self) -> None:
        """Leaves the mark. Raises BrokerAway."""

    def is_empty(self) -> bool:
        """Whether no message lies in the queues of this endpoint. Raises BrokerAway."""

    def fetch_lying_jobs(self, at_most: int) -> frozenset[str]:
        """Jobs whose hints lie in these queues; of each list the `at_most` next ones. Raises BrokerAway."""


class Gates(Protocol):
    """What keeps all jobs of the endpoint waiting."""

    @property
    def openings(self) -> int:
        """Rises each time that jobs which wait at a gate have a new chance."""

    def admission(self) -> tuple[Admission, tuple[str, ...]]:
        """What is allowed now, and the jobs that were refused."""

    def room(self, window: int) -> int:
        """How many jobs may be in the broker: `window`, or 0, 1 for a probe, or a few at a half-open gate."""


class Spread(Protocol):
    """How the window is spread over several endpoints."""

    def take(
        self, connection: Transaction, *, window: int, account: Account, now_ms: int, describe: Describe
    ) -> tuple[list[Due], Account]:
        """Jobs to publish now, marked as published; and the account with which the next call begins."""
