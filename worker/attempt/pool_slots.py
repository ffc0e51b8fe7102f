"""Slots of a worker that calls several endpoints: each has its own limit, and a job may wait for some of them only.

A job whose endpoints are full or shut holds up no other: what is claimed ahead is counted by the set of endpoints that
serve it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from worker.attempt.key_slots import KeySlots
from worker.attempt.slots import Slots, SlotUser
from worker.policy.routing import choose_by_weight, has


class PoolUser(SlotUser, Protocol):
    """What slots are given to. `routes`: the endpoints that serve it; `route`: the one that it was given."""

    routes: int
    route: int


T = TypeVar("T", bound=PoolUser)


class EndpointSlots:
    """The slots at one endpoint, as its limiter sees them. All of it is guarded by the lock of the pool."""

    def __init__(
        self, index: int, bulk_limit: int, lone_limit: int, *, weight: float, is_open: Callable[[], bool]
    ) -> None:
        """`is_open`: whether no gate keeps calls from it, as far as is known; it waits for nothing."""
        self.index = index
        self.bulk_limit = bulk_limit
        self.limit = bulk_limit + lone_limit
        self.weight = weight
        self.is_open = is_open
        self.probes = 0  # calls that may test its shut gate
        self.calling = {False: 0, True: 0}  # by `is_bulk`
        self.valid_until_s = float("inf")  # as `Slots.valid_until_s`
        self.epoch = 0  # as `Slots.epoch`
        self.lacks = False
        self.keys: KeySlots | None = None  # where it has several keys
        self._permits: int | None = None
        self._begun = self._begun_before = 0
        self._pool: PoolSlots[PoolUser] | None = None

    def join(self, pool: PoolSlots[PoolUser]) -> None:
        self._pool = pool

    @property
    def lock(self) -> threading.Condition:
        assert self._pool is not None
        return self._pool.lock

    @property
    def in_flight(self) -> int:
        """Slots in use."""
        return self.calling[False] + self.calling[True]

    @property
    def demand(self) -> int:
        """Jobs that have a slot here, or could use one. At a shut endpoint none could: its limit learns nothing."""
        return self.in_flight + self._count_jobs()

    @property
    def permits(self) -> int | None:
        """Calls that may begin under a limited rate; None: it is not limited."""
        return self._permits

    @property
    def startable(self) -> int:
        """As `Slots.startable`."""
        free = self.limit - self.in_flight
        return max(0, min(self._count_jobs(), free + self.begun))

    @property
    def begun(self) -> int:
        """As `Slots.begun`."""
        return self._begun - self._begun_before

    @property
    def takes_calls(self) -> bool:
        """Whether a call may go here, were there a slot."""
        return self.probes > 0 or self.is_open()

    def grant(self, permits: int | None) -> None:
        """Allows so many more calls to begin; None: any number."""
        assert self._pool is not None
        with self._pool.lock:
            self._permits = None if permits is None else (self._permits or 0) + permits
            self._begun_before = self._begun
            self.lacks = False
            self._pool.lock.notify_all()

    def take_permits(self, count: int) -> int:
        """Takes back permits that were not used, at most `count`. Returns how many."""
        assert self._pool is not None
        with self._pool.lock:
            taken = min(count, self._permits or 0)
            if self._permits is not None:
                self._permits -= taken
            return taken

    def has_room(self, *, is_bulk: bool, now_s: float) -> bool:
        """Whether a call may begin here now."""
        if now_s >= self.valid_until_s or self.in_flight >= self.limit or not self.takes_calls:
            return False
        if is_bulk and self.calling[True] >= self.bulk_limit:
            return False
        if self._permits is not None and self._permits < 1:
            self.lacks = True
            return False
        return self.keys is None or self.keys.has_room()

    def free(self, *, is_bulk: bool) -> int:
        """How many more calls of this kind the limit allows."""
        return max(0, (self.bulk_limit if is_bulk else self.limit) - self.calling[is_bulk])

    def begin(self, one: PoolUser, *, is_bulk: bool) -> None:
        """A call has the slot."""
        if self.keys is not None:
            self.keys.give(one, is_sure=True)  # one had room; a gate may have shut just now
        one.route, one.epoch = self.index, self.epoch
        if self.probes and not self.is_open():
            self.probes -= 1
        if self._permits is not None:
            self._permits -= 1
        self.calling[is_bulk] += 1
        self._begun += 1

    def count_waiting(self) -> int:
        """Jobs without a slot that it could serve."""
        return self._count_jobs()

    def _count_jobs(self) -> int:
        assert self._pool is not None
        return self._pool.count_jobs(self.index) if self.takes_calls else 0


class PoolSlots(Slots[T]):
    """As `Slots`, over several endpoints. A job gets a slot at one that serves it, by weight among those with room."""

    def __init__(
        self,
        endpoints: Sequence[EndpointSlots],
        *,
        ahead: int = 1,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(0, 0, ahead=ahead, monotonic_s=monotonic_s)
        self.endpoints = tuple(endpoints)
        self._credit: dict[int, float] = {}
        self._claiming: dict[
            T, int
        ] = {}  # whose claim is on its way, and the endpoints that it was asked for
        self._pending: Counter[tuple[bool, int]] = Counter()  # claims without a slot, by kind and endpoints
        for one in self.endpoints:
            one.join(self)  # type: ignore[arg-type]

    @property
    def bulk_limit(self) -> int:
        """The most calls of bulk jobs; of an endpoint that is shut, those that are still in flight."""
        return sum(
            one.bulk_limit if one.takes_calls else min(one.bulk_limit, one.calling[True])
            for one in self.endpoints
        )

    @property
    def limit(self) -> float:
        """The most calls at once, as above."""
        return sum(one.limit if one.takes_calls else min(one.limit, one.in_flight) for one in self.endpoints)

    def limit_of(self, group: int) -> int:
        """The most calls at once at the endpoints of the set that are not shut."""
        return sum(one.limit for one in self._of(group) if one.takes_calls)

    def count_jobs(self, index: int) -> int:
        """Jobs without a slot that this endpoint could serve."""
        with self._idle:
            waiting = sum(has(one.routes, index) for line in self._waiting.values() for one in line)
            claimed = sum(count for (_, group), count in self._pending.items() if has(group, index))
            return waiting + claimed + self._solo_waiting

    def set_limits(self, index: int, bulk_limit: int, lone_limit: int) -> list[T]:
        """Changes the limits of one endpoint. Returns the claimed jobs that have no slot left; see `take_stranded`."""
        with self._idle:
            endpoint = self.endpoints[index]
            endpoint.bulk_limit, endpoint.limit = bulk_limit, bulk_limit + lone_limit
            self._idle.notify_all()
            return self.take_stranded()

    def take_stranded(self) -> list[T]:
        """The claimed jobs all of whose endpoints are shut, so that they do not wait here: `leave` and `end` follow."""
        with self._idle:
            if self.is_stopping:
                return []
            stranded: list[T] = []
            for is_bulk, line in self._claimed.items():
                kept = [one for one in line if self._is_served(one.routes)]
                if len(kept) < len(line):
                    gone = [one for one in line if not self._is_served(one.routes)]
                    self._pending.subtract((is_bulk, one.routes) for one in gone)
                    stranded += gone
                    line.clear()
                    line.extend(kept)
            return stranded

    def add(self, one: T) -> bool:
        with self._idle:
            if one.is_bulk and not self._waiting[True] and not self._inside[True]:
                for endpoint in self._of(one.routes):
                    is_measured = endpoint.epoch > 0 or endpoint.keys is not None
                    endpoint.lacks = endpoint.lacks or is_measured
            return super().add(one)

    def take_claimable(self) -> list[T]:
        found: list[T] = []
        with self._idle:
            for is_bulk, waiting in self._waiting.items():
                if not waiting or not self._may_claim():
                    continue
                room: dict[int, float] = {}
                kept: list[T] = []
                for one in waiting:
                    group = one.routes
                    if group not in room:
                        room[group] = self._claim_room(group, is_bulk=is_bulk)
                    if room[group] < 1 or not self._may_claim():
                        kept.append(one)
                        continue
                    room[group] -= 1
                    found.append(one)
                    self._inside[is_bulk] += 1
                    self._active += 1
                    self._claiming[one] = group
                    self._pending[is_bulk, group] += 1
                    self._held_back.discard(one)
                if len(kept) < len(waiting):
                    waiting.clear()
                    waiting.extend(kept)
            self.lacks = any(one.lacks for one in self.endpoints)
        return found

    def add_claimed(self, one: T) -> bool:
        with self._idle:
            self._end_claim(one)
            if self.is_stopping or not self._is_served(one.routes):
                return False
            self._claimed[one.is_bulk].append(one)
            self._pending[one.is_bulk, one.routes] += 1
            return True

    def take_slots(self) -> int:
        found = 0
        with self._idle:
            now_s = self._monotonic_s()
            for is_bulk, claimed in self._claimed.items():
                full: set[int] = set()
                kept: list[T] = []
                for one in claimed:
                    chosen = (
                        None if one.routes in full else self._choose(one.routes, is_bulk=is_bulk, now_s=now_s)
                    )
                    if chosen is None:
                        full.add(one.routes)
                        kept.append(one)
                        continue
                    chosen.begin(one, is_bulk=is_bulk)
                    self._pending[is_bulk, one.routes] -= 1
                    self._started.append(one)
                    self._calling[is_bulk] += 1
                    found += 1
                if len(kept) < len(claimed):
                    claimed.clear()
                    claimed.extend(kept)
            self.lacks = any(one.lacks for one in self.endpoints)
        return found

    def begin_alone(self, one: T) -> bool:
        """Gives a job that runs alone, and is claimed now, its endpoint: `end_alone` follows. False: none is open."""
        with self._idle:
            chosen = self._choose(one.routes, is_bulk=False, now_s=self._monotonic_s())
            if chosen is None:
                return False
            chosen.begin(one, is_bulk=False)
            return True

    def end_alone(self, one: T) -> None:
        """Its call has ended."""
        with self._idle:
            self.endpoints[one.route].calling[False] -= 1
            super().end_alone(one)

    def leave(self, one: T, *, has_slot: bool = True) -> None:
        with self._idle:
            super().leave(one, has_slot=has_slot)
            if has_slot:
                self.endpoints[one.route].calling[one.is_bulk] -= 1
            else:
                self._end_claim(one)

    def stop(self) -> tuple[list[T], list[T]]:
        with self._idle:
            for one in self._started:
                self.endpoints[one.route].calling[one.is_bulk] -= 1
            self._pending.clear()
            self._claiming.clear()
            return super().stop()

    def let_probe(self, index: int, count: int = 1) -> None:
        """Lets so many calls test the shut gate of this endpoint, beside those that do."""
        with self._idle:
            self.endpoints[index].probes = count

    def may_probe(self, index: int) -> bool:
        """Whether a call may test the shut gate of this endpoint, and none has begun."""
        return self.endpoints[index].probes > 0

    def end_probe(self, index: int) -> None:
        """Lets none, if none has begun."""
        with self._idle:
            self.endpoints[index].probes = 0

    def _end_claim(self, one: T) -> None:
        group = self._claiming.pop(one, None)
        if group is not None:
            self._pending[one.is_bulk, group] -= 1

    def _of(self, group: int) -> list[EndpointSlots]:
        return [one for one in self.endpoints if has(group, one.index)]

    def _is_served(self, group: int) -> bool:
        return any(one.limit >= 1 and one.takes_calls for one in self._of(group))

    def _claim_room(self, group: int, *, is_bulk: bool) -> float:
        """How many more jobs of these endpoints may be claimed. Any number where all are shut: they are refused."""
        takers = [one for one in self._of(group) if one.takes_calls]
        if not takers:
            return float("inf")
        if all(one.limit < 1 for one in takers):
            for one in takers:
                one.lacks = True
            return 0
        free = sum(one.free(is_bulk=is_bulk) for one in takers)
        ahead = min(self.ahead, max(1, sum(one.limit for one in takers) // 2))
        return free + ahead - self._pending[is_bulk, group]

    def _choose(self, group: int, *, is_bulk: bool, now_s: float) -> EndpointSlots | None:
        with_room = [one for one in self._of(group) if one.has_room(is_bulk=is_bulk, now_s=now_s)]
        if len(with_room) < 2:
            return with_room[0] if with_room else None
        probed = next((one for one in with_room if one.probes and not one.is_open()), None)
        if probed is not None:
            return probed
        index, self._credit = choose_by_weight(self._credit, {one.index: one.weight for one in with_room})
        return self.endpoints[index]

    def _may_solo(self) -> bool:
        is_allowed = any(
            one.limit >= 1 and one.takes_calls and (one.permits is None or one.permits > 0)
            for one in self.endpoints
        )
        return self._active == 0 and not self._is_solo_active and not self._held_back and is_allowed
