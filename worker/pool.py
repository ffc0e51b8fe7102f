"""The endpoints of a worker put together: for each its route, slots and limiter, and how it is tested when shut."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import redis

from worker.attempt.credentials import Credentials
from worker.attempt.dispatch import Received
from worker.attempt.endpoint import open_endpoint
from worker.attempt.key_slots import KeySlot, KeySlots
from worker.attempt.models_probe import ModelsProbe, build_models_probe
from worker.attempt.pool_slots import EndpointSlots, PoolSlots
from worker.attempt.route import Route
from worker.attempt.routes import Routes
from worker.attempt.slots import Slots
from worker.clock import Clock
from worker.policy.retry import RetryRules
from worker.prices.book import open_price_book
from worker.settings import EndpointSettings, Settings
from worker.storage.engine import Ledger
from worker.storage.reading import has_answered
from worker.storage.writer import GroupWriter
from worker.throttle.key_gates import KeyGates
from worker.throttle.key_limiters import KeyLimiters
from worker.throttle.limiter import Limiter
from worker.throttle.limiter_needs import SlotUse
from worker.throttle.limits import Fixed
from worker.throttle.meter import Meter
from worker.throttle.redis_limits import RedisLimitStore
from worker.throttle.redis_store import RedisGateStore
from worker.throttle.store import KeyName
from worker.throttle.told import ToldLimits
from worker.upkeep.limit_records import LedgerLimits
from worker.upkeep.relay_needs import Gates
from worker.upkeep.spreading import Spread, Tested
from worker.upkeep.told_limits import ToldRecords


class Dispatch(Protocol):
    """What follows a change of the slots."""

    def set_limit(self, bulk_limit: int, lone_limit: int | None) -> None: ...
    def follow(self, surplus: list[Received]) -> None: ...
    def advance(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all endpoints of a worker share."""

    settings: Settings
    ledger: Ledger
    broker: redis.Redis
    writer: GroupWriter
    clock: Clock
    worker_id: str
    ledger_identity: str
    poke_relay: Callable[[], None]


class Pool:
    """One per worker. With one endpoint for all models, its slots are those of the worker, and no model is read."""

    slots: Slots[Received]

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._settings = [around.settings.for_endpoint(endpoint) for endpoint in around.settings.endpoints]
        told = around.settings.endpoints
        self._told: list[ToldRecords] = []
        self._routes = [self._open_route(one) for one in self._settings]
        self._probes = [
            self._build_probe(one, route) for one, route in zip(self._settings, self._routes, strict=True)
        ]
        self._several: PoolSlots[Received] | None = None
        if len(told) == 1 and not told[0].models:
            self.slots = Slots(*self._settings[0].first_slots)
        else:
            self._several = self.slots = PoolSlots([self._open_slots(i, one) for i, one in enumerate(told)])
        self.routes = Routes(
            self._routes,
            models=[one.models for one in told],
            slots=() if self._several is None else self._several.endpoints,
            clock=around.clock,
        )
        self._dispatch: Dispatch | None = None
        self.limiters: list[Limiter | KeyLimiters[KeySlot]] = []
        self.spread: Spread | None = None
        if self._several is not None:
            self.spread = Spread(
                around.ledger,
                around.clock,
                endpoint=around.settings.endpoint,
                endpoints=[
                    Tested(route.gates, probe.may_call_a_job)
                    for route, probe in zip(self._routes, self._probes, strict=True)
                ],
                routes=self.routes,
                slots=self._several,
                on_change=self._follow_gates,
            )
        self.gates: Gates = self._routes[0].gates if self.spread is None else self.spread

    def begin(self, dispatch: Dispatch) -> None:
        """Makes the limiters, which change the slots by the dispatcher."""
        self._dispatch = dispatch
        self.limiters = [
            self._build_limiter(index, dispatch, told)
            for index, told in enumerate(self._around.settings.endpoints)
        ]

    def may_call_a_job(self) -> bool:
        """Whether a job may test the gate of the only endpoint now."""
        return self._probes[0].may_call_a_job()

    def poke_limiters(self) -> None:
        """A job waits for the limit of all workers, and not for a slot of this one."""
        for index, limiter in enumerate(self.limiters):
            if self._several is None or self._several.endpoints[index].lacks:
                limiter.poke()

    def forget_worker(self, worker_id: str) -> None:
        """A worker has died: its shares are the others'."""
        for limiter in self.limiters:
            limiter.forget(worker_id)

    def keep_told(self) -> None:
        """Keeps the limits that the endpoints tell, for people. Raises DatabaseAway."""
        for one in self._told:
            one.keep()

    @property
    def spare_messages(self) -> int:
        """Messages that are held for jobs whose endpoints are full, so that they do not keep others out."""
        return int(2 * self.slots.limit) if len(self.routes.groups) > 1 else 0

    def _follow_gates(self) -> None:
        if self._dispatch is not None and self._several is not None:
            self._dispatch.follow(self._several.take_stranded())

    def _open_route(self, settings: Settings) -> Route:
        around = self._around
        told = ToldLimits()
        self._told.append(
            ToldRecords(
                around.ledger,
                told,
                around.clock,
                endpoint=settings.endpoint,
                worker_id=around.worker_id,
            )
        )
        credentials = Credentials(settings, around.ledger_identity)
        is_one_of_several = len(self._settings) > 1
        gates = KeyGates(
            RedisGateStore(around.broker, settings.endpoint),
            around.clock,
            probe_ttl_s=settings.deadline_s + 5.0,
            keys=credentials.names,
            endpoint=settings.endpoint if is_one_of_several else None,
        )
        with around.ledger.read() as connection:
            # The ledger knows which jobs were answered, but not by which of several endpoints.
            is_proven = not is_one_of_several and has_answered(connection, settings.endpoint)
        return Route(
            settings.endpoint,
            client=open_endpoint(settings),
            credentials=credentials,
            gates=gates,
            writer=around.writer,
            rules=RetryRules(
                max_attempts=settings.max_attempts,
                bad_response_max_attempts=settings.bad_response_max_attempts,
                backoff_base_s=settings.backoff_base_s,
                backoff_cap_s=settings.backoff_cap_s,
                retry_after_cap_s=settings.retry_after_cap_s,
                gate_patience_s=settings.gate_patience_s,
            ),
            clock=around.clock,
            prices=open_price_book(settings),
            is_proven=is_proven,
            is_stopping=lambda: self.slots.is_stopping,
            is_one_of_several=is_one_of_several,
            passes_priority=settings.upstream_priority == "vllm",
            told=told,
        )

    def _build_probe(self, settings: Settings, route: Route) -> ModelsProbe:
        return build_models_probe(
            settings, route.gates, route.credentials, self._around.clock, on_answer=self._around.poke_relay
        )

    def _open_slots(self, index: int, told: EndpointSettings) -> EndpointSlots:
        gates = self._routes[index].gates
        return EndpointSlots(
            index, *told.first_slots, weight=told.weight, is_open=lambda: gates.is_known_open
        )

    def _build_limiter(
        self, index: int, dispatch: Dispatch, told: EndpointSettings
    ) -> Limiter | KeyLimiters[KeySlot]:
        around, several, gates = self._around, self._several, self._routes[index].gates
        use = self.slots if several is None else several.endpoints[index]
        route, poked = self._routes[index], threading.Event()

        def apply(slots: int) -> None:
            split = told.split_slots(slots)
            if several is None:
                dispatch.set_limit(*split)
            else:
                dispatch.follow(several.set_limits(index, *split))

        records = LedgerLimits(
            around.ledger,
            endpoint=route.endpoint,
            worker_id=around.worker_id,
            filed_under=around.settings.endpoint,
            told=Fixed(
                requests_per_minute=told.requests_per_minute, tokens_per_minute=told.tokens_per_minute
            ),
            count_slots=None if several is None else partial(_count, several),
        )

        def build(
            apply: Callable[[int], None],
            *,
            slots: SlotUse = use,
            meter: Meter = route.meter,
            key: KeyName | None = None,
        ) -> Limiter:
            return Limiter(
                RedisLimitStore(around.broker, route.endpoint, key_id="" if key is None else key.id),
                records if key is None else records.of_key(key.id),
                slots,
                meter,
                around.clock,
                worker_id=around.worker_id,
                own_limit=told.call_count,
                first_limit=sum(told.first_slots) if key is None else 0,
                is_adaptive=told.is_adaptive,
                apply=apply,
                advance=dispatch.advance,
                openings=lambda: gates.restarts if key is None else gates.restarts_of(key),
                poked=poked,
                count_slots=partial(_count, use) if key is None and told.is_adaptive else None,
            )

        if not told.is_adaptive:
            return build(apply)
        return KeyLimiters(
            KeySlots(
                use, is_open=gates.is_key_open, on_unknown=poked.set, monotonic_s=around.clock.monotonic_s
            ),
            gates.names,
            around.clock,
            build_whole=build,
            build=lambda slot, apply: build(apply, slots=slot, meter=slot.meter, key=slot.name),
            apply=apply,
            poked=poked,
        )


def _count(slots: Slots[Received] | EndpointSlots) -> int:
    return int(slots.limit)


def begin_limiters(
    pool: Pool, spawn: Callable[..., threading.Thread], is_leaving: threading.Event
) -> list[threading.Thread]:
    """Each limiter has its first share before a message is taken, and then a thread."""
    threads = []
    for limiter in pool.limiters:
        limiter.tick()
        threads.append(spawn("antrean-limiter", limiter.run, is_leaving))
    return threads
