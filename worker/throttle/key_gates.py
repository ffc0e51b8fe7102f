"""The gate of an endpoint and the gates of its keys, as one.

A refused key, a spent quota and a rate limit shut the gate of that key: calls go on with other keys, here and in other
workers. All else shuts the gate of the endpoint. A call needs both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain, count

import structlog

from schemas.failure import FailureKind
from worker.clock import Clock
from worker.policy.gates import Admission, Gate, is_of_a_key, is_over
from worker.throttle.gatekeeper import REFUSED, Gatekeeper, Hold, Permit, room_at
from worker.throttle.store import USED_S, GateStore, KeyName

log = structlog.get_logger(__name__)
_LEAST_OPEN_FIRST = (
    Admission.SHUT,
    Admission.PROBE_OF_OTHERS,
    Admission.PROBE,
    Admission.TRIAL,
    Admission.OPEN,
)
_LOOKED_FOR_OTHERS_S = 1.0
_PROBE_ASKED_EVERY_S = 0.25


class KeyGates:
    """One per process. Thread-safe. Keys take turns, so that calls are spread evenly over those that are usable."""

    def __init__(
        self,
        store: GateStore,
        clock: Clock,
        *,
        probe_ttl_s: float,
        keys: Callable[[], Sequence[KeyName]],
        endpoint: str | None = None,
    ) -> None:
        """`keys`: those to call with, now; at least one. It waits for nothing.

        `endpoint`: its name in the log, if it is one of several.
        """
        self._name = endpoint
        self._store = store
        self._clock = clock
        self._probe_ttl_s = probe_ttl_s
        self.endpoint = Gatekeeper(store, clock, probe_ttl_s=probe_ttl_s, endpoint=endpoint)
        self._fetch_names = keys
        self._lock = threading.Lock()
        self._of_key: dict[str, Gatekeeper] = {}  # by the key's id; also of keys that were replaced
        self._names: tuple[KeyName, ...] = ()
        self._replaced: tuple[KeyName, ...] = ()  # of which the store does not know it yet
        self._changes = 0  # how often the keys were replaced
        self._next_turn = count().__next__
        self._probe_asked_s: dict[str, float] = {}
        self._used_noted_s = self._others_looked_s = float("-inf")
        self._do_others_serve = False
        self.next_order = self.endpoint.next_order

    @property
    def calls(self) -> int:
        """The number of calls so far."""
        return self.endpoint.calls

    @property
    def openings(self) -> int:
        """How often jobs that wait at a gate got a new chance: a gate was found open again, or there is a new key."""
        return (
            self._changes + self.endpoint.openings + sum(one.openings for one in list(self._of_key.values()))
        )

    @property
    def restarts(self) -> int:
        """How often calls began again after a gate had kept all of them waiting. One key of several stops none."""
        names = self._names
        return self.endpoint.openings + (self._keeper(names[0]).openings if len(names) == 1 else 0)

    def restarts_of(self, name: KeyName) -> int:
        """The same for the calls with one of several keys."""
        return self.endpoint.openings + self._keeper(name).openings

    def is_key_open(self, name: KeyName) -> bool:
        """Whether the key's gate lets all jobs pass, by the last known state."""
        return self._keeper(name).is_known_open

    def admit(self, job_id: str | None = None, hold: Hold | None = None) -> Permit:
        """A permit for one call with one key: `with gates.admit(job_id) as permit:`.

        If `permit.is_granted` is False, the job must not be called: it goes back to the ledger, unburnt. `hold`: the
        call's slot at one of several keys. It goes to a key that has room only, or probes one.
        """
        names = self.names()
        if len(names) == 1:
            return self._admit_with(names[0], job_id)
        if all(self._keeper(name).is_shut(job_id) for name in names):
            return REFUSED  # and no probe of the endpoint is begun for nothing
        permit = self.endpoint.admit(job_id)
        if hold is not None and permit.is_granted:
            permit.hold = hold
        if permit.is_granted and not self._give_key(permit, job_id, ()):
            permit.leave()
            return REFUSED
        return permit

    def change_key(
        self,
        permit: Permit,
        *,
        tried: Collection[str] = (),
        kind: FailureKind | None = None,
        asked_s: float | None = None,
        job_id: str | None = None,
        http_status: int | None = None,
    ) -> bool:
        """Gives the permit another key than the `tried` ones (ids), if one is usable. False: it keeps its key.

        With the `kind` of a refusal the key that it had is set aside, for all workers. A key that was replaced
        is not.
        """
        before, key = permit.of_key, permit.key
        if not self._give_key(permit, job_id, tried):
            return False
        if key is not None and kind is not None and any(one.id == key.id for one in self._names):
            self._keeper(key).shut(
                kind, asked_s=asked_s, permit=before, job_id=job_id, http_status=http_status
            )
        elif before is not None:
            before.leave()
        return True

    def is_known_shut(self, job_id: str) -> bool:
        """Whether the gates refuse this job, by the last known state. Reads nothing; only `admit` decides."""
        names = self._names
        return self.endpoint.is_known_shut(job_id) or (
            bool(names) and all(self._keeper(name).is_known_shut(job_id) for name in names)
        )

    @property
    def is_known_open(self) -> bool:
        """Whether calls may begin with some key, and not as probes, by the last known state. Reads nothing."""
        names = self._names
        return self.endpoint.is_known_open and (
            not names or any(self._keeper(name).is_known_open for name in names)
        )

    def admission(self) -> tuple[Admission, tuple[str, ...]]:
        """What the gates allow the relay to publish, and the jobs that were refused at them."""
        endpoint = self.endpoint.admission()
        of_keys = [self._keeper(name).admission() for name in self.names()]
        best = max(of_keys, key=lambda one: _LEAST_OPEN_FIRST.index(one[0]))
        return min(endpoint, best, key=lambda one: _LEAST_OPEN_FIRST.index(one[0]))

    def room(self, window: int) -> int:
        """How many jobs the relay may have in the broker: `window`, or 0 at shut gates, or 1 for a probe."""
        self._note_used()
        return room_at(self.admission()[0], window)

    def room_to_fetch(self) -> int | None:
        """How many messages this process should have; None: no bound.

        While all of its keys are set aside, and other workers have some that are not, messages are left to those.
        Reads nothing.
        """
        names = self._names
        if not self._do_others_serve or not names:
            return None
        keepers = [self._keeper(name) for name in names]
        if all(one.is_known_shut() for one in keepers):
            return 0
        return None if any(one.is_known_open for one in keepers) else 1

    def gate_for(self, kind: FailureKind, permit: Permit) -> Gate | None:
        """The gate that a failure of this kind concerns, at most 0.05 s old. None: it is open."""
        if is_of_a_key(kind) and permit.key is not None:
            found = self._keeper(permit.key).current_gate(closely=True)
            if found is not None:
                return found
        return self.endpoint.current_gate(closely=True)

    def is_probing(self, permit: Permit, gate: Gate | None) -> bool:
        """Whether this call decides about the gate: one from before it was opened does not."""
        is_probe = permit.is_probe or (permit.of_key is not None and permit.of_key.is_probe)
        return is_probe and gate is not None and gate.needs_probe

    def shut(
        self,
        kind: FailureKind,
        *,
        asked_s: float | None,
        permit: Permit | None = None,
        job_id: str | None = None,
        http_status: int | None = None,
    ) -> Gate:
        """Shuts the gate that the refusal concerns, for all workers. See `Gatekeeper.shut`."""
        key = None if permit is None else permit.key
        if not is_of_a_key(kind) or permit is None or key is None:
            gate = self.endpoint.shut(
                kind, asked_s=asked_s, permit=permit, job_id=job_id, http_status=http_status
            )
            if permit is not None and key is not None and permit.of_key is not None:
                self._keeper(key).decided_nothing(permit.of_key)
            return gate
        gate = self._keeper(key).shut(
            kind, asked_s=asked_s, permit=permit.of_key, job_id=job_id, http_status=http_status
        )
        self.endpoint.decided_nothing(permit)
        return gate

    def cool_down(self, kind: FailureKind, *, asked_s: float, permit: Permit | None = None) -> None:
        """Keeps all workers away for as long as the endpoint asked; after a rate limit, from the key of the permit."""
        key = None if permit is None or kind is not FailureKind.RATE_LIMITED else permit.key
        (self.endpoint if key is None else self._keeper(key)).cool_down(kind, asked_s=asked_s)

    def keep_off(self, wait_s: float, permit: Permit) -> None:
        """Keeps all workers away from the key of the permit, whose limit is reached. See `Gatekeeper.keep_off`."""
        (self.endpoint if permit.key is None else self._keeper(permit.key)).keep_off(wait_s)

    def find_usable_key(self) -> KeyName | None:
        """A key of this process that is not set aside, by the last known state; None: all are."""
        return next((name for name in self._names if self._keeper(name).is_known_open), None)

    def has_usable_key(self) -> bool:
        """Whether a key of this process is not set aside, by the last known state."""
        return self.find_usable_key() is not None

    def decided_nothing(self, permit: Permit) -> None:
        """Records a call whose answer decided nothing. If it was a probe, the next may begin a second later."""
        if permit.key is not None and permit.of_key is not None:
            self._keeper(permit.key).decided_nothing(permit.of_key)
        self.endpoint.decided_nothing(permit)

    def succeeded(self, permit: Permit, *, has_others: Callable[[], bool] = lambda: True) -> None:
        """Records that a call was answered. What it probed opens for all, or for a few. See `Gatekeeper.succeeded`."""
        self.endpoint.succeeded(permit, has_others=has_others)
        if permit.key is not None and permit.of_key is not None:
            self._keeper(permit.key).succeeded(permit.of_key)

    def acquit(self, job_id: str) -> None:
        """Opens the gates that were shut because of this job alone. Its refusal was the job's own."""
        for one in (self.endpoint, *(self._keeper(name) for name in self._names)):
            one.acquit(job_id)

    def was_key_accepted(self, permit: Permit) -> bool:
        """Whether a command asked the endpoint in the last two minutes, and it accepted the key of this call."""
        keeper = self.endpoint if permit.key is None else self._keeper(permit.key)
        return keeper.was_key_accepted()

    def do_others_serve(self) -> bool:
        """Whether a live worker has a key that is not set aside, and this process has none. A second old at most."""
        names, now_s = self._names, self._clock.monotonic_s()
        if not names or self.has_usable_key():
            self._do_others_serve = False
            return False
        with self._lock:
            if now_s - self._others_looked_s < _LOOKED_FOR_OTHERS_S:
                return self._do_others_serve
            self._others_looked_s = now_s
        own = {name.id for name in names}
        self._do_others_serve = any(
            one.name.id not in own and (one.gate is None or is_over(one.gate, now_ms=self._clock.now_ms()))
            for one in self._store.fetch_keys()
        )
        return self._do_others_serve

    def names(self) -> tuple[KeyName, ...]:
        """The keys to call with, now."""
        names = tuple(self._fetch_names())
        if names != self._names:
            with self._lock:
                if names != self._names:
                    self._changes += bool(self._names)
                    if self._names:
                        log.info("keys.replaced", keys=[one.id for one in names], place=names[0].place)
                    self._replaced = tuple(one for one in self._names if one not in names)
                    self._names = names
                    self._used_noted_s = float("-inf")
        return names

    def _admit_with(self, only: KeyName, job_id: str | None) -> Permit:
        """As `admit`, where there is one key: each call passes here."""
        keeper = self._keeper(only)
        if keeper.is_shut(job_id):
            return REFUSED
        permit = self.endpoint.admit(job_id)
        if permit.is_granted:
            of_key = keeper.admit(job_id)
            if not of_key.is_granted:
                permit.leave()
                return REFUSED
            permit.key, permit.of_key = only, of_key
        return permit

    def _give_key(self, permit: Permit, job_id: str | None, tried: Collection[str]) -> bool:
        """Gives the permit a key: one that is to be probed now, else the next of those that are not set aside."""
        usable: list[KeyName] = []
        to_probe: list[KeyName] = []
        in_turn: Iterable[KeyName] = ()
        for name in self.names():
            keeper = self._keeper(name)
            if name.id in tried or keeper.is_shut(job_id):
                continue
            (usable if keeper.is_known_open else to_probe).append(name)
        if usable:
            if permit.hold is None:
                first = self._next_turn() % len(usable)
                in_turn = usable[first:] + usable[:first]
            else:
                in_turn = permit.hold.rank(usable)
            to_probe = [name for name in to_probe if self._is_to_be_tried(name)]
        for name in chain(to_probe, in_turn):
            if permit.hold is not None and not permit.hold.take(name, is_probe=name in to_probe):
                continue
            of_key = self._keeper(name).admit(job_id)
            if of_key.is_granted:
                permit.key, permit.of_key = name, of_key
                if permit.hold is not None:
                    permit.epoch = permit.hold.epoch
                return True
        return False

    def _is_to_be_tried(self, name: KeyName) -> bool:
        """Whether a probe of this key is asked for: not for each call, while another probe of it has no answer."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            if now_s - self._probe_asked_s.get(name.id, float("-inf")) < _PROBE_ASKED_EVERY_S:
                return False
            self._probe_asked_s[name.id] = now_s
            return True

    def _keeper(self, name: KeyName) -> Gatekeeper:
        found = self._of_key.get(name.id)
        if found is None:
            with self._lock:
                found = self._of_key.get(name.id)
                if found is None:
                    store = self._store.of_key(name)
                    found = Gatekeeper(
                        store, self._clock, probe_ttl_s=self._probe_ttl_s, key=name, endpoint=self._name
                    )
                    self._of_key[name.id] = found
        return found

    def _note_used(self) -> None:
        """Tells the store now and then which keys are used here, and looks for those of others where none is usable."""
        now_s = self._clock.monotonic_s()
        names = self.names()
        if now_s - self._used_noted_s >= USED_S / 4:
            self._used_noted_s = now_s
            replaced, self._replaced = self._replaced, ()
            self._store.note_used(names, replaced=replaced)
        self.do_others_serve()
