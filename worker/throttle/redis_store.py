"""The shared gate in the broker's Redis or Valkey. Fails open: a gate that cannot be read stops nobody."""

from __future__ import annotations

import hashlib

import orjson
import redis
import structlog

from schemas.failure import FailureKind
from worker.policy.gates import Gate

log = structlog.get_logger(__name__)
_KEEP_S = 24 * 3600


class RedisGateStore:
    """The gate of one endpoint, shared by all workers on one broker."""

    def __init__(self, client: redis.Redis, endpoint: str) -> None:
        name = hashlib.sha256(endpoint.encode()).hexdigest()[:16]
        self._client = client
        self._gate_key = f"antrean:{name}:gate"
        self._probe_key = f"antrean:{name}:probe"
        self.failed_open = 0  # times the gate could not be read or kept and counted as open

    def fetch(self) -> Gate | None:
        try:
            raw = self._client.get(self._gate_key)
        except redis.RedisError as exc:
            self._count(exc)
            return None
        if not isinstance(raw, bytes):
            return None
        try:
            facts = orjson.loads(raw)
            return Gate(
                kind=FailureKind(facts["kind"]),
                until_ms=facts["until_ms"],
                strikes=facts["strikes"],
                needs_probe=facts["needs_probe"],
            )
        except (ValueError, KeyError, TypeError) as exc:  # another version's, or nobody's
            self._count(exc)
            return None

    def put(self, gate: Gate) -> None:
        raw = orjson.dumps(
            {
                "kind": gate.kind,
                "until_ms": gate.until_ms,
                "strikes": gate.strikes,
                "needs_probe": gate.needs_probe,
            }
        )
        try:
            self._client.set(self._gate_key, raw, ex=_KEEP_S)
        except redis.RedisError as exc:
            self._count(exc)

    def clear(self) -> None:
        try:
            self._client.delete(self._gate_key, self._probe_key)
        except redis.RedisError as exc:
            self._count(exc)

    def take_probe(self, *, ttl_s: float) -> bool:
        try:
            return bool(self._client.set(self._probe_key, b"1", nx=True, px=max(1, round(ttl_s * 1000))))
        except redis.RedisError as exc:
            self._count(exc)
            return True

    def leave_probe(self) -> None:
        try:
            self._client.delete(self._probe_key)
        except redis.RedisError as exc:
            self._count(exc)

    def _count(self, exc: Exception) -> None:
        self.failed_open += 1
        if self.failed_open == 1:
            log.warning("gate.failed_open", error=type(exc).__name__)
