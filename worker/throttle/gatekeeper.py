"""The gatekeeper: a process's access to the shared gate. It asks the gate, shuts it and opens it, at little cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol

import structlog

from schemas.failure import FailureKind
from worker.clock import Clock
from worker.ids import new_id
from worker.policy.gates import (
    Admission,
    Gate,
    bring_forward,
    cool_down,
    correct_clock,
    decide_admission,
    put_off,
    shut_further,
)
from worker.policy.half_open import AT_ONCE, count_needed
from worker.throttle.store import GateStore, KeyName

log = structlog.get_logger(__name__)
_FRESH_S = 0.25
_CLOSELY_S = 0.05
_ALIKE_MS = 100  # answers of one moment tell of the same end of a wait, within this time
_QUIET_S = 10.0  # a gate that opens and shuts all the time is logged once in this time


class Hold(Protocol):
    """The slot of a call at one of several keys, each of which has a limit. `epoch`: of that key's limit."""

    epoch: int

    def rank(self, usable: Sequence[KeyName]) -> Iterable[KeyName]:
        """Those of these keys that have room for the call, in the order in which to try them."""

    def take(self, name: KeyName, *, is_probe: bool = False) -> bool:
        """Moves the call to this key. False: it has no room; a probe needs none."""

    def note_answer(self, permit: Permit, *, latency_s: float, tokens: int, tokens_out: int) -> None:
        """The call was answered."""

    def note_failure(self, permit: Permit, *, is_refusal: bool) -> None:
        """The call failed. `is_refusal`: the endpoint would not take so many."""


@dataclass(slots=True)
class Permit:
    """Permission to call the endpoint, valid inside its `with`. The answer to a probe decides for all workers.

    `key`: the key to call with, and `of_key`: the permission of that key's gate; both None where keys have no gates.
    `hold`: its slot at that key; None where the endpoint has one key.

    A probe, which has a `token`, ends with the `with`, unless the call has settled it before. `order`: the number of
    the call's start among the events of this process (see `Evidence`). `number`: its number among the calls only.
    `epoch`: of the limit under which it was admitted. `reserved_tokens`: of the tokens a minute (see `Meter`). `mark`,
    `began_s`: how many calls began well before this one, and when it began itself (see `ToldMarks`); 0 if unknown.
    """

    is_granted: bool = True
    is_probe: bool = False
    token: str | None = field(default=None, compare=False)
    order: int = field(default=0, compare=False)
    number: int = field(default=0, compare=False)
    give_back: Callable[[str | None], object] | None = field(default=None, compare=False, repr=False)
    epoch: int = field(default=0, compare=False)
    reserved_tokens: int = field(default=0, compare=False)
    mark: int = field(default=0, compare=False)
    began_s: float = field(default=0.0, compare=False)
    key: KeyName | None = field(default=None, compare=False)
    of_key: Permit | None = field(default=None, compare=False, repr=False)
    hold: Hold | None = field(default=None, compare=False, repr=False)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Ends the probe in the store, if this permit is one. Further calls do nothing."""
        give_back, self.give_back = self.give_back, None
        if give_back is not None:
            give_back(self.token)
        if self.of_key is not None:
            self.of_key.leave()

    def settle(self) -> None:
        """Notes that the probe has ended in the store: `leave` then does nothing."""
        self.give_back = None


REFUSED = Permit(is_granted=False)


class Gatekeeper:
    """One gate, for a process. Looks at the store at most four times a second while the gate is open."""

    def __init__(
        self,
        store: GateStore,
        clock: Clock,
        *,
        probe_ttl_s: float,
        key: KeyName | None = None,
        endpoint: str | None = None,
    ) -> None:
        """For the log: `key`, whose gate it is, None: the endpoint's own; `endpoint`, the name of one of several."""
        self._store = store
        self._named = {} if key is None else {"key": key.id, "place": key.place}
        if endpoint is not None:
            self._named["endpoint"] = endpoint
        self._clock = clock
        self._probe_ttl_s = probe_ttl_s
        self._lock = threading.Lock()
        self._gate: Gate | None = None
        self._fetched: Gate | None = None  # as it was last read from the store
        self._looked_at_s = float("-inf")
        self._told_s = float("-inf")
        self._is_shut_told = False
        self.next_order = count(1).__next__
        self._next_number = count(1).__next__
        self.calls = 0
        self.openings = 0  # how often a gate that needed a probe was found open again
        self.asks_for_a_list = (
            False  # before a job tests the gate in an outage (`worker/attempt/models_probe.py`)
        )

    def admit(self, job_id: str | None = None) -> Permit:
        """A permit for one call: `with gatekeeper.admit(job_id) as permit:`.

        If `permit.is_granted` is False, the job must not be called: it goes back to the ledger, unburnt.
        """
        gate = self.current_gate()
        if gate is None:
            return self._grant(None)
        now_ms = self._clock.now_ms()
        admission = decide_admission(gate, now_ms=now_ms)
        if admission not in (Admission.OPEN, Admission.SHUT):
            # Another worker may have tested it just now, or have let jobs do so.
            gate = self.current_gate(closely=True)
            admission = decide_admission(gate, now_ms=now_ms)
        if gate is None or admission is Admission.OPEN:
            return self._grant(None)
        if admission is Admission.SHUT:
            return REFUSED
        if admission is Admission.PROBE_OF_OTHERS and (job_id is None or job_id in gate.jobs):
            return REFUSED
        if job_id is not None and self.asks_for_a_list and gate.waits_for_a_list:
            return REFUSED  # a job that was in hand when the gate shut
        token = new_id()
        is_trial = admission is Admission.TRIAL
        if self._store.take_probe(ttl_s=self._probe_ttl_s, token=token, now_ms=now_ms, is_trial=is_trial):
            return self._grant(token)
        return REFUSED

    def is_known_shut(self, job_id: str | None = None) -> bool:
        """Whether the gate refuses this job, or any, by the last known state. Reads nothing; only `admit` decides."""
        gate = self._gate
        if gate is None:
            return False
        admission = decide_admission(gate, now_ms=self._clock.now_ms())
        if admission is Admission.PROBE_OF_OTHERS:
            return job_id is not None and job_id in gate.jobs
        return admission is Admission.SHUT

    def is_shut(self, job_id: str | None = None) -> bool:
        """Whether the gate refuses this job, or any. Only `admit` decides."""
        self.current_gate()
        return self.is_known_shut(job_id)

    @property
    def is_known_open(self) -> bool:
        """Whether the gate lets all jobs pass, by the last known state."""
        return decide_admission(self._gate, now_ms=self._clock.now_ms()) is Admission.OPEN

    def _grant(self, token: str | None) -> Permit:
        number = self._next_number()
        self.calls = number  # without a lock: it may be a few too low
        is_probe = token is not None
        give_back = self._store.leave_probe if is_probe else None
        return Permit(True, is_probe, token, self.next_order(), number, give_back)

    def current_gate(self, *, closely: bool = False) -> Gate | None:
        """The gate, at most 0.25 s old; with `closely` at most 0.05 s. None: it is open."""
        now_s, fresh_s = self._clock.monotonic_s(), _CLOSELY_S if closely else _FRESH_S
        if now_s - self._looked_at_s < fresh_s:
            return self._gate  # without the lock, which every call would wait for
        with self._lock:
            if now_s - self._looked_at_s < fresh_s:
                return self._gate
            self._looked_at_s = now_s
        fetched = self._store.fetch()
        with self._lock:
            if fetched != self._fetched:
                self._see(fetched)
            return self._gate

    def admission(self) -> tuple[Admission, tuple[str, ...]]:
        """What the gate allows the relay to publish, and the jobs that were refused at the gate."""
        gate = self.current_gate()
        return decide_admission(gate, now_ms=self._clock.now_ms()), () if gate is None else gate.jobs

    def room(self, window: int) -> int:
        """How many jobs the relay may have in the broker: `window`, or 0 at a shut gate, or 1 for a probe."""
        return room_at(self.admission()[0], window)

    def shut(
        self,
        kind: FailureKind,
        *,
        asked_s: float | None,
        permit: Permit | None = None,
        job_id: str | None = None,
        http_status: int | None = None,
    ) -> Gate:
        """Shuts the gate for all workers, after a refusal that concerns all of them.

        A call that began before the gate was shut only adds its job to the refused ones, and ends no probe.
        """
        now_ms = self._clock.now_ms()
        before = self._fetch()
        is_probe = permit is None or permit.is_probe
        gate = shut_further(
            before,
            kind,
            now_ms=now_ms,
            asked_s=asked_s,
            is_probe=is_probe,
            job_id=job_id,
            http_status=http_status,
        )
        if gate != before:
            self._keep(gate, only_if_shut=before is not None and before.needs_probe)
            if gate.strikes != (before.strikes if before is not None and before.needs_probe else 0):
                self._tell_shut(gate)
        else:
            self._looked_at_s = float("-inf")  # others have struck it, and this process does not know it yet
        if permit is not None:
            permit.leave()
        else:
            self._store.leave_probe()
        return gate

    def cool_down(self, kind: FailureKind, *, asked_s: float) -> None:
        """Keeps all workers away for as long as the endpoint asked."""
        self._keep(cool_down(self._fetch(), kind, now_ms=self._clock.now_ms(), asked_s=asked_s))

    def keep_off(self, wait_s: float) -> None:
        """Keeps all workers away for `wait_s` before they are refused: the endpoint said that a limit is reached.

        It is no refusal. Costs nothing where the gate is known to be shut for as long, as after most such answers.
        """
        gate = self._gate
        until_ms = self._clock.now_ms() + wait_s * 1000 - _ALIKE_MS
        if gate is None or (not gate.needs_probe and gate.until_ms < until_ms):
            self.cool_down(FailureKind.RATE_LIMITED, asked_s=wait_s)

    def decided_nothing(self, permit: Permit) -> None:
        """Records a probe whose answer decided nothing. The next probe may begin a second later."""
        if permit.is_probe:
            self._change(lambda gate: put_off(gate, now_ms=self._clock.now_ms()))
        permit.leave()

    def let_jobs(self) -> None:
        """Lets jobs test the gate, in all workers, until it is struck again."""
        self._change(lambda gate: replace(gate, lets_jobs=True))

    def was_key_accepted(self) -> bool:
        """Whether a command asked the endpoint in the last two minutes, and it accepted the key."""
        return self._store.was_accepted()

    def acquit(self, job_id: str) -> None:
        """Opens a gate that was shut because of this job alone. Its refusal was the job's own."""
        gate = self.current_gate(closely=True)
        if gate is not None and gate.is_of_a_key and set(gate.jobs) <= {job_id} and gate.needs_probe:
            self._store.clear()
            with self._lock:
                self._see(None)

    def succeeded(self, permit: Permit, *, has_others: Callable[[], bool] = lambda: True) -> None:
        """Records that a call was answered. If it was a probe, the gate opens for all, or half opens for a few.

        `has_others`: whether there are jobs that could be called to see if the endpoint is well again; asked only if
        needed. Without any the gate opens. A call that began before the gate was shut does not open it. But it is a
        sign of life: the next probe may begin sooner.
        """
        if permit.is_probe:
            needed = count_needed(self.current_gate(closely=True))
            if permit.token is None:
                has_opened: bool | None = self._store.clear()
            else:
                has_opened = self._store.answer_probe(
                    permit.token, needed=needed if needed > 1 and has_others() else 1
                )
            permit.settle()  # the probe has ended, now or before
            with self._lock:
                if has_opened:
                    self._see(None)
                elif has_opened is not None:
                    self._looked_at_s = float("-inf")
            return
        gate = self._gate
        if gate is not None and gate.needs_probe:
            self._change(lambda found: bring_forward(found, now_ms=self._clock.now_ms()))

    def _change(self, change: Callable[[Gate], Gate]) -> None:
        gate = self.current_gate(closely=True)
        if gate is None or not gate.needs_probe:
            return
        changed = change(gate)
        if changed != gate:
            self._keep(changed, only_if_shut=True)

    def _fetch(self) -> Gate | None:
        fetched = self._store.fetch()
        return None if fetched is None else correct_clock(fetched, now_ms=self._clock.now_ms())

    def _keep(self, gate: Gate, *, only_if_shut: bool = False) -> None:
        self._store.put(gate, only_if_shut=only_if_shut)
        with self._lock:
            self._gate = self._fetched = gate
            self._looked_at_s = self._clock.monotonic_s()

    def _see(self, fetched: Gate | None) -> None:
        was_shut = self._gate is not None and self._gate.needs_probe
        self._fetched = fetched
        self._gate = None if fetched is None else correct_clock(fetched, now_ms=self._clock.now_ms())
        if was_shut and (fetched is None or not fetched.needs_probe):
            self.openings += 1
            if self._is_shut_told:
                self._is_shut_told = False
                log.info("gate.opened", **self._named)

    def _tell_shut(self, gate: Gate) -> None:
        """Logs a gate that shuts, and every doubling of its wait; if it opens and shuts all the time, once in 10 s."""
        now_s = self._clock.monotonic_s()
        is_new = gate.strikes == 1
        if gate.strikes & (gate.strikes - 1) or (is_new and now_s - self._told_s < _QUIET_S):
            return
        if is_new:
            self._told_s = now_s
        self._is_shut_told = True
        log.warning(
            "gate.shut",
            kind=gate.kind.value,
            http_status=gate.http_status,
            strikes=gate.strikes,
            next_probe_in_s=round((gate.until_ms - self._clock.now_ms()) / 1000, 1),
            **self._named,
        )


def room_at(admission: Admission, window: int) -> int:
    """How many jobs of `window` a gate has room for: all, none, one for a probe, or a few where it is half open."""
    return {Admission.OPEN: window, Admission.SHUT: 0, Admission.TRIAL: AT_ONCE}.get(admission, 1)
