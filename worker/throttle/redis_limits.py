"""The limits of an endpoint in the broker's Redis or Valkey, shared by all of its workers on one broker."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from typing import Any

import orjson
import redis

from worker.policy.concurrency import Limit, parse_limit
from worker.policy.flow import Flow
from worker.throttle.limits import (
    SETTLING_MS,
    SILENT_MS,
    TOLD_KEPT_MS,
    TURN_MS,
    Change,
    Fixed,
    Report,
    Share,
    StoreAway,
    Use,
)
from worker.throttle.scripts import read_script

_KEEP_MS = 3_600_000
_SUMS = tuple(one.name for one in fields(Flow))


class RedisLimitStore:
    """The limits of one endpoint and key, as one worker reaches them. Not thread-safe.

    Times are the broker's, which are the same for all. With `now_ms`, they are the caller's.
    """

    def __init__(self, client: redis.Redis, endpoint: str, *, key_id: str = "") -> None:
        name = hashlib.sha256(f"{endpoint}\n{key_id}".encode()).hexdigest()[:16]
        self._key = f"antrean:{name}:limits-1"
        self._client = client
        self._exchange = client.register_script(read_script("exchange.lua"))
        self._leave = client.register_script(read_script("leave_limits.lua"))
        self._limit: Limit | None = None  # as the store had it last
        self.now_ms: int | None = None

    def exchange(
        self, report: Report, fixed: Fixed, change: Change | None = None, *, has_others: bool = False
    ) -> Share:
        told = {
            "worker": report.worker_id,
            "most": report.most,
            "is_adaptive": report.is_adaptive,
            "applied": report.applied,
            "in_flight": report.in_flight,
            "demand": report.demand,
            "epoch": report.epoch,
            "flow": {name: value for name in _SUMS if (value := getattr(report.flow, name))},
            "wanted": report.wanted,
            "unused": report.unused,
            "each_tokens": report.each_tokens,
            "back_tokens": report.back_tokens,
            "version": fixed.version_ms,
            "known_epoch": 0 if self._limit is None else self._limit.epoch,
        }
        # Left out where there is none: Lua's cjson reads a null as something.
        for name, value in (
            ("in_flight_limit", fixed.in_flight),
            ("requests", fixed.requests_per_minute),
            ("tokens", fixed.tokens_per_minute),
        ):
            if value is not None:
                told[name] = value
        if report.told is not None:
            words = asdict(report.told)
            told["told"] = {name: value for name, value in words.items() if value is not None}
        if change is not None:
            told["of_epoch"], told["new_epoch"] = change.of_epoch, change.limit.epoch
            told["value"], told["limit"] = change.limit.value, orjson.dumps(asdict(change.limit)).decode()
        arguments: list[Any] = [
            orjson.dumps(told),
            "" if self.now_ms is None else self.now_ms,
            "1" if has_others else "",
            SILENT_MS,
            SETTLING_MS,
            TURN_MS,
            _KEEP_MS,
            TOLD_KEPT_MS,
        ]
        try:
            return self._read(self._exchange(keys=[self._key], args=arguments))
        except (redis.RedisError, ValueError, TypeError) as exc:  # the latter: of another version
            raise StoreAway(type(exc).__name__) from exc

    def leave(self, worker_id: str) -> None:
        try:
            self._leave(keys=[self._key], args=[worker_id, _KEEP_MS])
        except redis.RedisError as exc:
            raise StoreAway(type(exc).__name__) from exc

    def fetch_use(self) -> Use | None:
        """What the workers have in flight now; None where none shares a limit. Raises StoreAway."""
        try:
            raw = self._client.get(self._key)
            if not isinstance(raw, bytes):
                return None
            now_ms = self._fetch_now_ms() if self.now_ms is None else self.now_ms
            workers = orjson.loads(raw)["workers"].values()
            in_flight = [one["in_flight"] for one in workers if one["seen"] > now_ms - SILENT_MS]
        except (redis.RedisError, OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise StoreAway(type(exc).__name__) from exc
        return Use(sum(in_flight), len(in_flight)) if in_flight else None

    def _fetch_now_ms(self) -> int:
        seconds, micros = self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def _read(self, answer: Any) -> Share:
        slots, permits, epoch, limit, flow, in_flight, workers, now_ms, wait_us, changed = answer
        if not epoch:
            self._limit = None
        elif limit:
            self._limit = parse_limit(orjson.loads(limit))
        sums = orjson.loads(flow)
        return Share(
            slots=slots,
            permits=None if permits < 0 else permits,
            limit=self._limit,
            flow=Flow(**{name: round(sums.get(name, 0)) for name in _SUMS}),
            in_flight=in_flight,
            workers=workers,
            now_ms=now_ms,
            wait_ms=-(-wait_us // 1000),
            has_changed=bool(changed),
        )
