"""The shared gate for people: why jobs wait, and until when; and waking those jobs once the endpoint answers."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import redis

from worker.broker.client import broker_address, open_client
from worker.clock import SystemClock, describe_since, describe_until, iso_ms
from worker.policy.gates import Gate, bring_forward
from worker.settings import Settings
from worker.storage.engine import Ledger
from worker.storage.gate_waits import SPREAD_MS, wake_blocked
from worker.storage.reading import Trouble, fetch_trouble
from worker.storage.tables import MAX_ROWS
from worker.throttle.redis_store import RedisGateStore

_FRESH_S = 1.0
_NEXT_JOB_TRIES = "the next job tests whether it is over"


class GateWatch:
    """The gate of these settings' endpoint. Where the broker does not answer, nothing is known of it."""

    def __init__(self, settings: Settings, client: redis.Redis | None = None) -> None:
        self._endpoint = settings.endpoint
        self._client = open_client(broker_address(settings)) if client is None else client
        self._store = RedisGateStore(self._client, self._endpoint)
        self._fetched_s = float("-inf")
        self._seen: Gate | None = None

    def fetch(self) -> Gate | None:
        """The gate, where it keeps jobs waiting now; else None, also where the broker does not answer."""
        if not self._has_broker():
            return None
        gate = self._store.fetch()
        is_over = gate is not None and not gate.needs_probe and gate.until_ms <= SystemClock().now_ms()
        return None if is_over else gate

    def fetch_cached(self) -> Gate | None:
        """What `fetch` returns, at most a second old: for a caller that asks all the time."""
        now_s = time.monotonic()
        if now_s - self._fetched_s >= _FRESH_S:
            self._fetched_s = now_s
            self._seen = self.fetch()
        return self._seen

    def wake(self, ledger: Ledger) -> int:
        """Brings the waiting jobs forward after the endpoint has answered a call, and returns their number.

        A gate that needs a probe is probed at once, and not opened: an answer of one path proves nothing of another.
        A cooldown is kept.
        """
        now_ms = SystemClock().now_ms()
        # An embedded broker is away while no command uses it: there is no gate, and nothing is wrong.
        if self._has_broker():
            self._store.note_accepted()
            gate = self.fetch()
            if gate is not None and gate.needs_probe:
                self._store.put(bring_forward(gate, now_ms=now_ms), only_if_shut=True)
        return self._wake_all(ledger, now_ms)

    def open_gate(self, ledger: Ledger) -> int:
        """Opens the gate without a probe, ends a cooldown, and brings the waiting jobs forward; returns their number.

        A job that was refused for its rate keeps its own wait.
        """
        if self._has_broker():
            self._store.clear()
        return self._wake_all(ledger, SystemClock().now_ms())

    def _wake_all(self, ledger: Ledger, now_ms: int) -> int:
        woken, step = 0, MAX_ROWS
        while step == MAX_ROWS:
            due_ms = now_ms + woken // MAX_ROWS * SPREAD_MS
            step = ledger.run(partial(wake_blocked, endpoint=self._endpoint, now_ms=due_ms))
            woken += step
        return woken

    def _has_broker(self) -> bool:
        try:
            return bool(self._client.ping())
        except (redis.RedisError, OSError):
            return False


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
        return f"{_cause(gate, now_ms)}: {words} ({_until(gate.until_ms, now_ms) or _NEXT_JOB_TRIES})"
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
        return f"{cause}: {_NEXT_JOB_TRIES}"
    return f"{cause}: no job is called {describe_until(gate.until_ms, now_ms)}; then one is called to test it"


def _cause(gate: Gate, now_ms: int) -> str:
    status = "" if gate.http_status is None else f" (HTTP {gate.http_status})"
    since = "" if gate.since_ms is None else f" {describe_since(gate.since_ms, now_ms)}"
    return f"{gate.kind.value}{status}{since}"


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
        "strikes": gate.strikes,
    }
