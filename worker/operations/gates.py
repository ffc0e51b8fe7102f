"""The shared gate for people: why jobs wait, and until when; and waking those jobs once the endpoint answers."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import redis

from api_client.config import Credential
from worker.attempt.keys import make_key_id
from worker.broker.client import broker_address, open_client
from worker.clock import SystemClock, describe_moment, describe_since, describe_until, iso_ms
from worker.policy.gates import Gate, bring_forward, is_over
from worker.settings import EndpointSettings, Settings
from worker.storage.engine import Ledger
from worker.storage.gate_waits import SPREAD_MS, wake_blocked
from worker.storage.identity import fetch_identity
from worker.storage.reading import Trouble, fetch_trouble
from worker.storage.tables import MAX_ROWS
from worker.throttle.redis_store import RedisGateStore
from worker.throttle.store import KeyName, KeyState

_FRESH_S = 1.0
_NEXT_JOB_TRIES = "the next job tests whether it is over"
_A_FEW_GO_FIRST = "it has answered again, and a few calls go before all do"


@dataclass(frozen=True, slots=True)
class EndpointGate:
    """The gate of one endpoint where it keeps all calls there waiting, and the keys that live workers use there."""

    endpoint: EndpointSettings
    gate: Gate | None = None
    keys: Sequence[KeyState] = ()


class GateWatch:
    """The gates of these settings' endpoints. Where the broker does not answer, nothing is known of them."""

    def __init__(
        self, settings: Settings, client: redis.Redis | None = None, *, models: Collection[str] = ()
    ) -> None:
        """`models`: those of the jobs whose gates are asked for; any without them."""
        self._jobs_of = settings.endpoint
        self._client = open_client(broker_address(settings)) if client is None else client
        self._stores = [(one, RedisGateStore(self._client, one.identity)) for one in settings.endpoints]
        served = {frozenset(one.name for one in settings.endpoints if one.serves(model)) for model in models}
        # The endpoints that serve a model, each set once.
        self._sets = {one for one in served if one} or {frozenset(one.name for one in settings.endpoints)}
        self._fetched_s = float("-inf")
        self._seen: list[EndpointGate] = []

    def fetch(self) -> Gate | None:
        """The gate, where it keeps all jobs waiting now; else None, also where the broker does not answer.

        With several endpoints that is none while one of them takes calls; else the next one to be tried.
        """
        return self._find_shut_for_all(self.fetch_each())

    def fetch_each(self) -> list[EndpointGate]:
        """The gate and the keys of each endpoint, in their order.

        The gate is the endpoint's own; where all keys of live workers are set aside, that of the next one to be tried.
        """
        if not self._has_broker():
            return [EndpointGate(one) for one, _ in self._stores]
        return [_fetch_of(one, store, now_ms=SystemClock().now_ms()) for one, store in self._stores]

    def fetch_cached(self) -> Gate | None:
        """What `fetch` returns, at most a second old: for a caller that asks all the time."""
        return self._find_shut_for_all(self._fetch_each_cached())

    def is_a_model_shut(self) -> bool:
        """Whether the jobs of one of the models wait at gates, even if others are called; at most a second old."""
        return any(self._find_shut_sets(self._fetch_each_cached()))

    def _fetch_each_cached(self) -> list[EndpointGate]:
        now_s = time.monotonic()
        if now_s - self._fetched_s >= _FRESH_S:
            self._fetched_s = now_s
            self._seen = self.fetch_each()
        return self._seen

    def _find_shut_sets(self, gates: Sequence[EndpointGate]) -> list[Gate | None]:
        return [find_shut([one for one in gates if one.endpoint.name in names]) for names in self._sets]

    def _find_shut_for_all(self, gates: Sequence[EndpointGate]) -> Gate | None:
        shut = [gate for gate in self._find_shut_sets(gates) if gate is not None]
        return min(shut, key=lambda one: one.until_ms) if len(shut) == len(self._sets) else None

    def wake(self, ledger: Ledger, accepted: Mapping[str, Sequence[Credential]]) -> int:
        """Brings the waiting jobs forward after endpoints have answered a call, and returns their number.

        `accepted`: the names of those that have answered, each with the keys that it took.

        A gate that needs a probe is probed at once, and not opened: an answer of one path proves nothing of another.
        A cooldown is kept.
        """
        now_ms = SystemClock().now_ms()
        # An embedded broker is away while no command uses it: there is no gate, and nothing is wrong.
        if self._has_broker():
            with ledger.read() as connection:
                identity = fetch_identity(connection)
            for endpoint, of_endpoint in self._stores:
                if endpoint.name not in accepted:
                    continue
                names = [KeyName(make_key_id(one.key or "", identity), "") for one in accepted[endpoint.name]]
                for store in (of_endpoint, *map(of_endpoint.of_key, names)):
                    store.note_accepted()
                    gate = store.fetch()
                    if gate is not None and gate.needs_probe:
                        store.put(bring_forward(gate, now_ms=now_ms), only_if_shut=True)
        return self._wake_all(ledger, now_ms)

    def open_gates(self, ledger: Ledger, endpoints: Sequence[EndpointSettings]) -> int:
        """Opens the gates of these endpoints and of their keys without a probe, ends cooldowns, and brings the waiting
        jobs forward; returns their number.

        A job that was refused for its rate keeps its own wait.
        """
        if self._has_broker():
            for endpoint, store in self._stores:
                if endpoint in endpoints:
                    store.clear_all()
        return self._wake_all(ledger, SystemClock().now_ms())

    def _wake_all(self, ledger: Ledger, now_ms: int) -> int:
        woken, step = 0, MAX_ROWS
        while step == MAX_ROWS:
            due_ms = now_ms + woken // MAX_ROWS * SPREAD_MS
            step = ledger.run(partial(wake_blocked, endpoint=self._jobs_of, now_ms=due_ms))
            woken += step
        return woken

    def _has_broker(self) -> bool:
        try:
            return bool(self._client.ping())
        except (redis.RedisError, OSError):
            return False


def find_shut(gates: Sequence[EndpointGate]) -> Gate | None:
    """The gate that is tried next, where those of all endpoints are shut; else None. Pure."""
    shut = [one.gate for one in gates if one.gate is not None]
    return min(shut, key=lambda one: one.until_ms) if shut and len(shut) == len(gates) else None


def _fetch_of(endpoint: EndpointSettings, store: RedisGateStore, *, now_ms: int) -> EndpointGate:
    gate = store.fetch()
    keys = [
        replace(one, gate=None) if one.gate is not None and is_over(one.gate, now_ms=now_ms) else one
        for one in store.fetch_keys()
    ]
    if gate is not None and not is_over(gate, now_ms=now_ms):
        return EndpointGate(endpoint, gate, keys)
    gates = [one.gate for one in keys if one.gate is not None]
    all_are_shut = bool(gates) and len(gates) == len(keys)
    return EndpointGate(endpoint, min(gates, key=lambda one: one.until_ms) if all_are_shut else None, keys)


def explain_gate(ledger: Ledger, settings: Settings, gate: Gate) -> str:
    """Why the gate is shut, with the endpoint's words for it as far as a waiting job met them, and until when."""
    with ledger.read() as connection:
        found = fetch_trouble(connection, settings.endpoint)
    return (
        describe_trouble(replace(found, pause=None), gate, now_ms=SystemClock().now_ms()) or gate.kind.value
    )


def describe_trouble(found: Trouble, gate: Gate | None, *, now_ms: int) -> str | None:
    """Why all jobs wait, in a sentence, or None: a pause, then the gate that is shut now, then what jobs met before.

    Jobs remember the refusal that they met themselves, which may be older than what the gate is shut for now. So
    their words are told where they are of the gate's own kind.
    """
    if found.pause is not None:
        reason = found.pause.reason or "no reason given"
        return f"{found.pause.endpoint} is paused ({reason}); `antrean resume` goes on"
    if gate is not None:
        words = next((one.message for one in found.blocked if one.kind == gate.kind and one.message), None)
        if words is None or not gate.needs_probe:
            return describe_gate(gate, now_ms=now_ms)
        return f"{_cause(gate, now_ms)}: {words} ({_until(gate.until_ms, now_ms) or _what_is_tried(gate)})"
    if not found.blocked:
        return None
    first = found.blocked[0]
    return (
        f"{first.kind}: {first.message} ({_until(first.not_before_ms, now_ms) or 'the next attempt is due'})"
    )


def describe_gate(gate: Gate, *, now_ms: int) -> str:
    """Why the gate is shut, since when, and when it is tried next, or until when the cooldown lasts.

    `server_error (HTTP 503) since 14:02:11: no job is called until 14:03:20, in 5 s; then one tries again`.
    """
    cause = _cause(gate, now_ms)
    if not gate.needs_probe:
        return f"{cause}: the endpoint asked everyone to wait {describe_until(gate.until_ms, now_ms)}"
    if gate.until_ms <= now_ms:
        return f"{cause}: {_what_is_tried(gate)}"
    return f"{cause}: no job is called {describe_until(gate.until_ms, now_ms)}; then one is called to test it"


def describe_key(key: KeyState, *, now_ms: int) -> str | None:
    """`key 0a1b2c3d4e5f (ANTREAN_API_KEYS, key 2) is set aside: quota (HTTP 402), …`; None for one that is not."""
    if key.gate is None:
        return None
    is_due = key.gate.until_ms <= now_ms
    again = (
        "the next job tries it again"
        if is_due
        else f"tried again {describe_moment(key.gate.until_ms, now_ms)}"
    )
    return f"key {key.name.id} ({key.name.place}) is set aside: {_cause(key.gate, now_ms)}, {again}"


def key_facts(key: KeyState, *, now_ms: int) -> dict[str, Any]:
    """The key as JSON may have it: never the key itself."""
    gate = None if key.gate is None else gate_facts("", key.gate, now_ms=now_ms)
    if gate is not None:
        del gate["endpoint"]
    return {"id": key.name.id, "place": key.name.place, "set_aside": gate}


def endpoint_gate_facts(one: EndpointGate, *, now_ms: int) -> dict[str, Any]:
    """The gate and the keys of one endpoint of several, as JSON may have them."""
    return {
        "name": one.endpoint.name,
        "endpoint": one.endpoint.identity,
        "gate": gate_facts(one.endpoint.identity, one.gate, now_ms=now_ms),
        "keys": [key_facts(key, now_ms=now_ms) for key in one.keys],
    }


def _cause(gate: Gate, now_ms: int) -> str:
    status = "" if gate.http_status is None else f" (HTTP {gate.http_status})"
    since = "" if gate.since_ms is None else f" {describe_since(gate.since_ms, now_ms)}"
    return f"{gate.kind.value}{status}{since}"


def _what_is_tried(gate: Gate) -> str:
    return _A_FEW_GO_FIRST if gate.is_half_open else _NEXT_JOB_TRIES


def _until(at_ms: int, now_ms: int) -> str | None:
    return None if at_ms <= now_ms else describe_until(at_ms, now_ms)


def gate_facts(endpoint: str, gate: Gate | None, *, now_ms: int) -> dict[str, Any] | None:
    """The gate as JSON may have it, times in ISO 8601; None where no job has to wait."""
    if gate is None:
        return None
    return {
        "endpoint": endpoint,
        "kind": gate.kind.value,
        "http_status": gate.http_status,
        "since": None if gate.since_ms is None else iso_ms(gate.since_ms),
        "until": iso_ms(gate.until_ms),
        "in_s": round(max(0, gate.until_ms - now_ms) / 1000, 1),
        "needs_probe": gate.needs_probe,
        "is_half_open": gate.is_half_open,
        "strikes": gate.strikes,
    }
