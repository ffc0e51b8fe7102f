"""Stores for the state of a gate: the protocol, and a store in memory for tests and for a broker that is away."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from worker.policy.gates import MOST_PROBES, Gate, next_probe_after_s

ACCEPTED_S = 120


class GateStore(Protocol):
    """The gate of one endpoint. Methods do not raise if the store is away: they fail open, and count that."""

    def fetch(self) -> Gate | None:
        """The gate, or None when it is open."""

    def put(self, gate: Gate, *, only_if_shut: bool = False) -> None:
        """Shuts the gate. With `only_if_shut`, a gate that was opened meanwhile stays open."""

    def clear(self, token: str | None = None) -> bool:
        """Opens the gate and ends all probes. With a probe's token, only if that probe has not ended; else False."""

    def take_probe(self, *, ttl_s: float, token: str = "probe", now_ms: int | None = None) -> bool:
        """Begins a probe under `token`, for at most `ttl_s` seconds. False: none may begin now.

        One probe at a time; while it has no answer, another one every few seconds, at most `MOST_PROBES` at once.
        """

    def leave_probe(self, token: str | None = None) -> None:
        """Ends the probe of that token. None ends all probes."""

    def note_accepted(self) -> None:
        """Notes that the endpoint has accepted the key just now, in a request without a job."""

    def was_accepted(self) -> bool:
        """Whether `note_accepted` was called in the last two minutes."""


class MemoryGateStore:
    """The gate of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gate: Gate | None = None
        self._probes: dict[str, int] = {}  # token to the probe's start, ms
        self._accepted_s = float("-inf")

    def fetch(self) -> Gate | None:
        with self._lock:
            return self._gate

    def put(self, gate: Gate, *, only_if_shut: bool = False) -> None:
        with self._lock:
            if self._gate is not None or not only_if_shut:
                self._gate = gate

    def clear(self, token: str | None = None) -> bool:
        with self._lock:
            if token is not None and token not in self._probes:
                return False
            self._gate = None
            self._probes.clear()
            return True

    def take_probe(self, *, ttl_s: float, token: str = "probe", now_ms: int | None = None) -> bool:
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        with self._lock:
            live = [at for at in self._probes.values() if now_ms - ttl_s * 1000 < at < now_ms + 1000]
            if len(live) >= MOST_PROBES:
                return False
            if live and now_ms - max(live) < next_probe_after_s(len(live)) * 1000:
                return False
            self._probes[token] = now_ms
            return True

    def leave_probe(self, token: str | None = None) -> None:
        with self._lock:
            if token is None:
                self._probes.clear()
            else:
                self._probes.pop(token, None)

    def note_accepted(self) -> None:
        self._accepted_s = time.monotonic()

    def was_accepted(self) -> bool:
        return time.monotonic() - self._accepted_s < ACCEPTED_S
