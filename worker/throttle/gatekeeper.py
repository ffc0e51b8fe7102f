"""The gatekeeper: asks the shared gate, closes it and opens it again, cheaply on the hot path."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import structlog

from schemas.failure import FailureKind
from worker.clock import Clock
from worker.policy.gates import Admission, Gate, decide_admission, pause, shut_further
from worker.throttle.store import GateStore

log = structlog.get_logger(__name__)
_FRESH_S = 0.25


@dataclass(frozen=True, slots=True)
class Pass:
    """Leave to call the endpoint. A probe decides for everyone."""

    is_probe: bool


class Gatekeeper:
    """One per process. Looks at the store at most four times a second while the gate is open."""

    def __init__(self, store: GateStore, clock: Clock, *, probe_ttl_s: float) -> None:
        self._store = store
        self._clock = clock
        self._probe_ttl_s = probe_ttl_s
        self._lock = threading.Lock()
        self._gate: Gate | None = None
        self._looked_at_s = float("-inf")

    def admit(self) -> Pass | None:
        """Leave to call, or None: the job goes back to the ledger, unburnt."""
        admission = decide_admission(self.look(), now_ms=self._clock.now_ms())
        if admission is Admission.OPEN:
            return Pass(is_probe=False)
        if admission is Admission.PROBE and self._store.take_probe(ttl_s=self._probe_ttl_s):
            return Pass(is_probe=True)
        return None

    def look(self) -> Gate | None:
        """The gate as of at most a quarter of a second ago."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            if now_s - self._looked_at_s < _FRESH_S:
                return self._gate
            self._looked_at_s = now_s
        gate = self._store.fetch()
        with self._lock:
            self._gate = gate
        return gate

    def room(self, window: int) -> int:
        """How many jobs the relay may have in the broker: none at a shut gate, one for a probe."""
        admission = decide_admission(self.look(), now_ms=self._clock.now_ms())
        return {Admission.OPEN: window, Admission.PROBE: 1, Admission.SHUT: 0}[admission]

    def shut(self, kind: FailureKind, *, asked_s: float | None) -> Gate:
        """Closes the gate for all workers after a refusal that concerns all of them."""
        gate = shut_further(self._store.fetch(), kind, now_ms=self._clock.now_ms(), asked_s=asked_s)
        log.warning("gate.shut", kind=kind.value, strikes=gate.strikes)
        self._keep(gate)
        return gate

    def pause(self, kind: FailureKind, *, asked_s: float) -> None:
        """Keeps all workers away for as long as the endpoint asked."""
        self._keep(pause(self._store.fetch(), kind, now_ms=self._clock.now_ms(), asked_s=asked_s))

    def leave(self, leave: Pass) -> None:
        """Gives a probe's place back when its call decided nothing."""
        if leave.is_probe:
            self._store.leave_probe()

    def succeeded(self, leave: Pass) -> None:
        """A call was answered: a gate that waits for a probe opens for all."""
        gate = self._gate
        if leave.is_probe or (gate is not None and gate.needs_probe):
            self._store.clear()
            with self._lock:
                self._gate = None
            log.info("gate.opened")

    def _keep(self, gate: Gate) -> None:
        self._store.put(gate)
        if gate.needs_probe:
            self._store.leave_probe()
        with self._lock:
            self._gate = gate
            self._looked_at_s = self._clock.monotonic_s()
