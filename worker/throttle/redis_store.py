"""The shared gate in the broker's Redis or Valkey. It fails open: if the gate cannot be read, calls go on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import orjson
import redis
import structlog

from schemas.failure import FailureKind
from worker.policy.gates import MOST_PROBES, Gate, next_probe_after_s
from worker.policy.half_open import next_trial_after_s
from worker.throttle.scripts import read_script
from worker.throttle.store import ACCEPTED_S, USED_S, KeyName, KeyState

log = structlog.get_logger(__name__)
_KEEP_S = 24 * 3600
_KEEP_KEY_S = 600  # beyond its wait
_KEEP_PROBE_MS = 3600_000  # the life of the key; each probe in it ends earlier by itself
_KEEP_HALF_OPEN_MS = 600_000  # longer than a call takes; nobody has called since, and the gate is forgotten
_NEXT_AFTER_MS = tuple(round(next_probe_after_s(live) * 1000) for live in range(1, MOST_PROBES))
_NEXT_TRIAL_AFTER_MS = tuple(round(next_trial_after_s(live) * 1000) for live in range(1, MOST_PROBES))


class RedisGateStore:
    """The gate of one endpoint, or of one of its keys, shared by all workers on one broker.

    Probes are timed by the broker's clock, which is the same for all. With `goes_by_callers`, by the callers' clocks.
    """

    def __init__(
        self,
        client: redis.Redis,
        endpoint: str,
        *,
        key: KeyName | None = None,
        goes_by_callers: bool = False,
    ) -> None:
        """`key` None: the endpoint's own gate, under the name that earlier versions know."""
        name = hashlib.sha256(endpoint.encode()).hexdigest()[:16]
        self._keys_key = f"antrean:{name}:keys"
        self._gated_key = f"antrean:{name}:gated-keys"  # whose gates may be shut, in use or not
        self._prefix = f"antrean:{name}:key"
        if key is not None:
            name = f"{name}:key:{key.id}"
        self._endpoint, self._key = endpoint, key
        self._client = client
        self._goes_by_callers = goes_by_callers
        self._gate_key = f"antrean:{name}:gate"
        self._probe_key = f"antrean:{name}:gate-probe"
        self._accepted_key = f"antrean:{name}:key-accepted"
        self._take_probe = client.register_script(read_script("take_probe.lua"))
        self._leave_probe = client.register_script(read_script("leave_probe.lua"))
        self._answer_probe = client.register_script(read_script("answer_probe.lua"))
        self.failed_open = 0  # how often the gate could not be read or written, and counted as open

    def fetch(self) -> Gate | None:
        try:
            raw = self._client.get(self._gate_key)
        except redis.RedisError as exc:
            self._count(exc)
            return None
        if not isinstance(raw, bytes):
            return None
        try:
            return _parse(raw)
        except (ValueError, KeyError, TypeError) as exc:  # written by another version or another program
            self._count(exc)
            return None

    def put(self, gate: Gate, *, only_if_shut: bool = False) -> None:
        try:
            keep_s = _KEEP_S
            if self._key is not None:
                # A key that nobody tries any more is forgotten: it may be no key of anybody's.
                keep_s = (_KEEP_KEY_S if gate.needs_probe else 1) + (gate.wait_ms or 0) // 1000
                self._note_gated(self._key.id, keep_s)
            self._client.set(self._gate_key, orjson.dumps(asdict(gate)), ex=keep_s, xx=only_if_shut)
        except redis.RedisError as exc:
            self._count(exc)

    def clear(self, token: str | None = None) -> bool:
        try:
            if token is not None and not self._leave(token):
                return False
            self._client.delete(self._gate_key, self._probe_key)
        except redis.RedisError as exc:
            self._count(exc)
        return True

    def clear_all(self) -> None:
        self.clear()
        try:
            key_ids = [_text(member) for member in self._client.zrange(self._gated_key, 0, -1)]
            self._client.delete(self._gated_key)
        except redis.RedisError as exc:
            self._count(exc)
            return
        for key_id in key_ids:
            self.of_key(KeyName(key_id, "")).clear()

    def take_probe(
        self, *, ttl_s: float, token: str = "probe", now_ms: int | None = None, is_trial: bool = False
    ) -> bool:
        facts: tuple[str | int, ...] = (
            token,
            now_ms if self._goes_by_callers and now_ms is not None else "",
            max(1, round(ttl_s * 1000)),
            MOST_PROBES,
            *(_NEXT_TRIAL_AFTER_MS if is_trial else _NEXT_AFTER_MS),
        )
        try:
            return bool(self._take_probe(keys=[self._probe_key], args=facts))
        except redis.RedisError as exc:
            self._count(exc)
            return True

    def answer_probe(self, token: str, *, needed: int) -> bool | None:
        facts: tuple[str | int, ...] = (token, needed, _KEEP_PROBE_MS, _KEEP_HALF_OPEN_MS)
        try:
            found = self._answer_probe(keys=[self._probe_key, self._gate_key], args=facts)
        except redis.RedisError as exc:
            self._count(exc)
            return True
        return None if found < 0 else bool(found)

    def leave_probe(self, token: str | None = None) -> None:
        try:
            if token is None:
                self._client.delete(self._probe_key)
            else:
                self._leave(token)
        except redis.RedisError as exc:
            self._count(exc)

    def of_key(self, name: KeyName) -> RedisGateStore:
        return RedisGateStore(self._client, self._endpoint, key=name, goes_by_callers=self._goes_by_callers)

    def note_used(self, names: Sequence[KeyName], *, replaced: Sequence[KeyName] = ()) -> None:
        try:
            if replaced:
                self._client.delete(*(f"{self._prefix}:{name.id}:used" for name in replaced))
            for name in names:
                self._client.set(f"{self._prefix}:{name.id}:used", name.place.encode(), ex=USED_S)
            self._client.sadd(self._keys_key, *(name.id for name in names))
        except redis.RedisError as exc:
            self._count(exc)

    def fetch_keys(self) -> list[KeyState]:
        found = []
        try:
            for member in self._client.smembers(self._keys_key):
                key_id = _text(member)
                place = self._client.get(f"{self._prefix}:{key_id}:used")
                if isinstance(place, bytes):
                    name = KeyName(key_id, place.decode())
                    found.append(KeyState(name, self.of_key(name).fetch()))
                else:
                    self._client.srem(self._keys_key, key_id)
        except redis.RedisError as exc:
            self._count(exc)
        return sorted(found, key=lambda one: (one.name.place, one.name.id))

    def note_accepted(self) -> None:
        try:
            self._client.set(self._accepted_key, b"1", ex=ACCEPTED_S)
        except redis.RedisError as exc:
            self._count(exc)

    def was_accepted(self) -> bool:
        try:
            return bool(self._client.exists(self._accepted_key))
        except redis.RedisError as exc:
            self._count(exc)
            return False

    def _note_gated(self, key_id: str, keep_s: int) -> None:
        """Lets `clear_all` find the gate of the key while it is kept, also when no worker uses the key any more."""
        now_s = time.time()
        self._client.zadd(self._gated_key, {key_id: now_s + keep_s})
        gone = self._client.zrangebyscore(self._gated_key, 0, now_s - _KEEP_KEY_S)
        if gone:
            self._client.zrem(self._gated_key, *gone)

    def _leave(self, token: str) -> bool:
        return bool(self._leave_probe(keys=[self._probe_key], args=[token, _KEEP_PROBE_MS]))

    def _count(self, exc: Exception) -> None:
        self.failed_open += 1
        if self.failed_open == 1:
            log.warning("gate.failed_open", error=type(exc).__name__)


def _parse(raw: bytes) -> Gate:
    facts = orjson.loads(raw)
    return Gate(
        kind=FailureKind(facts["kind"]),
        until_ms=int(facts["until_ms"]),
        strikes=int(facts["strikes"]),
        needs_probe=bool(facts["needs_probe"]),
        # Missing if a worker of an older version shut the gate.
        wait_ms=_whole(facts.get("wait_ms")),
        struck_ms=_whole(facts.get("struck_ms")),
        since_ms=_whole(facts.get("since_ms")),
        http_status=facts.get("http_status"),
        jobs=tuple(facts.get("jobs") or ()),
        answered=int(facts.get("answered") or 0),
        failed=int(facts.get("failed") or 0),
        lets_jobs=bool(facts.get("lets_jobs")),
    )


def _text(raw: Any) -> str:
    return raw.decode() if isinstance(raw, bytes) else str(raw)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
