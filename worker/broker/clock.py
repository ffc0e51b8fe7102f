"""The broker's clock, as this process knows it. Leases of foreign messages use it, not a worker's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis


class BrokerClock:
    """The broker's time. The broker is asked now and then; the monotonic clock counts in between.

    Until the broker was asked, it is this machine's time.
    """

    def __init__(
        self, wall_s: Callable[[], float] = time.time, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall_s = wall_s
        self._monotonic_s = monotonic_s
        self._ahead_s: float | None = None  # of the monotonic clock

    @property
    def is_known(self) -> bool:
        return self._ahead_s is not None

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return self._wall_s() if self._ahead_s is None else self._monotonic_s() + self._ahead_s

    def ask(self, client: redis.Redis) -> None:
        """Asks the broker. Raises redis.RedisError."""
        began_s = self._monotonic_s()
        seconds, microseconds = client.time()
        self._ahead_s = seconds + microseconds / 1_000_000 - (began_s + self._monotonic_s()) / 2


BROKER_CLOCK = BrokerClock()  # one broker a process
