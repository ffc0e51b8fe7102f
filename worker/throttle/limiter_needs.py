"""What the limiter of a worker needs: what the ledger says, and the slots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from worker.policy.concurrency import Limit
from worker.throttle.limits import Fixed


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger says: the limits that are set, the limit that was found, and whether other workers live."""

    fixed: Fixed = field(default_factory=Fixed)
    found: Limit | None = None
    has_others: bool = False


class LimitRecords(Protocol):
    """The limits in the ledger. Methods do not raise if the database is away."""

    def fetch(self) -> Known | None:
        """What the ledger says; None while it does not answer."""

    def remember(self, limit: Limit, *, now_ms: int) -> bool:
        """Keeps the found limit for the next run, and the change of its value. False: the database is away."""

    def note_slots(self, slots: int) -> bool:
        """Notes how many slots this worker has now. False: the database is away."""


class SlotUse(Protocol):
    """The slots of this worker."""

    valid_until_s: float
    epoch: int

    @property
    def demand(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def permits(self) -> int | None: ...
    @property
    def startable(self) -> int: ...
    @property
    def begun(self) -> int: ...
    def grant(self, permits: int | None) -> None: ...
    def take_permits(self, count: int) -> int: ...
