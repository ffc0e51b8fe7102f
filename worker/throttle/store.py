"""Where the state of gates is shared: a protocol, and a store in memory for tests and for a broker that is away."""

from __future__ import annotations

import threading
from typing import Protocol

from worker.policy.gates import Gate


class GateStore(Protocol):
    """The gate of one endpoint. Methods do not raise when the store is away: they fail open, and count it."""

    def fetch(self) -> Gate | None:
        """The gate, or None when it is open."""

    def put(self, gate: Gate) -> None:
        """Shuts the gate."""

    def clear(self) -> None:
        """Opens the gate."""

    def take_probe(self, *, ttl_s: float) -> bool:
        """Whether the caller has the one probe's place, for at most `ttl_s` seconds."""

    def leave_probe(self) -> None:
        """Gives the probe's place back."""


class MemoryGateStore:
    """The gate of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gate: Gate | None = None
        self._is_probed = False

    def fetch(self) -> Gate | None:
        with self._lock:
            return self._gate

    def put(self, gate: Gate) -> None:
        with self._lock:
            self._gate = gate

    def clear(self) -> None:
        with self._lock:
            self._gate = None
            self._is_probed = False

    def take_probe(self, *, ttl_s: float) -> bool:
        with self._lock:
            taken, self._is_probed = self._is_probed, True
            return not taken

    def leave_probe(self) -> None:
        with self._lock:
            self._is_probed = False
