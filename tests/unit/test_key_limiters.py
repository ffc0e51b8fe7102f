"""Each of several keys has a found limit of its own; with one key all is as it was."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.support.clock import FakeClock
from tests.unit.test_limiter import Ledger
from tests.unit.test_slots import Job
from worker.attempt.key_slots import KeySlot, KeySlots
from worker.attempt.slots import Slots
from worker.policy.concurrency import Limit, Phase
from worker.throttle.gatekeeper import Permit
from worker.throttle.key_limiters import KeyLimiters
from worker.throttle.limiter import Limiter
from worker.throttle.limits import Fixed, MemoryLimitStore
from worker.throttle.meter import Meter
from worker.throttle.store import KeyName

A, B, C = (KeyName(f"id-{one}", f"place {one}") for one in "abc")


class World:
    """What the workers share: the store and the ledger, by the id of a key; empty for the endpoint as a whole."""

    def __init__(self, clock: FakeClock) -> None:
        self.stores: defaultdict[str, MemoryLimitStore] = defaultdict(lambda: MemoryLimitStore(clock.now_ms))
        self.ledgers: defaultdict[str, Ledger] = defaultdict(Ledger)

    def found(self, name: KeyName | None = None) -> Limit | None:
        state = self.stores["" if name is None else name.id]._state
        return None if state is None else state.limit

    def values(self, *names: KeyName) -> list[int]:
        return [getattr(self.found(one), "value", 0) for one in names]

    def holders(self, name: KeyName) -> list[str]:
        state = self.stores[name.id]._state
        return [] if state is None else list(state.workers)


class Worker:
    """A worker with the keys that a test gives it. Its calls last until the test ends them."""

    def __init__(self, name: str, world: World, clock: FakeClock, *keys: KeyName) -> None:
        self.world, self.clock, self.worker_id = world, clock, name
        self.names: tuple[KeyName, ...] = keys
        self.shut: set[KeyName] = set()
        self.openings: Counter[str] = Counter()
        self.slots: Slots[Job] = Slots(16, 0, monotonic_s=clock.monotonic_s)
        self.calls: list[tuple[Job, Permit]] = []
        self.poked = threading.Event()
        self.applied: list[int] = []
        self.limiter = KeyLimiters(
            KeySlots(
                self.slots,
                is_open=lambda key: key not in self.shut,
                on_unknown=self.poked.set,
                monotonic_s=clock.monotonic_s,
            ),
            lambda: self.names,
            clock,
            build_whole=lambda apply: self._build("", self.slots, Meter(), 16, apply),
            build=self._build_of_key,
            apply=self._apply,
            poked=self.poked,
        )

    def _build_of_key(self, slot: KeySlot, apply: Callable[[int], None]) -> Limiter:
        return self._build(slot.name.id, slot, slot.meter, 0, apply)

    def _build(
        self,
        key_id: str,
        slots: Slots[Job] | KeySlot,
        meter: Meter,
        first: int,
        apply: Callable[[int], None],
    ) -> Limiter:
        return Limiter(
            self.world.stores[key_id],
            self.world.ledgers[key_id],
            slots,
            meter,
            self.clock,
            worker_id=self.worker_id,
            own_limit=256,
            first_limit=first,
            is_adaptive=True,
            apply=apply,
            advance=self.advance,
            openings=lambda: self.openings[key_id],
            poked=self.poked,
            count_slots=(lambda: int(self.slots.limit)) if not key_id else None,
        )

    def _apply(self, slots: int) -> None:
        self.applied.append(slots)
        for job in self.slots.set_limit(slots, 0):
            self.slots.leave(job, has_slot=False)
            self.slots.end()
            self.slots.add(job)
        self.advance()

    def take(self, jobs: int) -> None:
        for _ in range(jobs):
            self.slots.add(Job())
        self.advance()

    def advance(self) -> None:
        for job in self.slots.take_claimable():
            if not self.slots.add_claimed(job):
                self.slots.leave(job, has_slot=False)
                self.slots.end()
        for _ in range(self.slots.take_slots()):
            job = self.slots.take_started()
            assert job is not None
            self.calls.append((job, Permit(epoch=job.hold.epoch if job.hold else job.epoch)))

    def used(self, job: Job) -> KeyName | None:
        slot = None if job.hold is None else job.hold._slot
        return None if slot is None else slot.name

    def count(self) -> Counter[KeyName | None]:
        """Calls in flight by the key."""
        return Counter(self.used(job) for job, _ in self.calls)

    def end(self, key: KeyName | None = None, *, calls: int = 1000, refused: bool = False) -> None:
        """Calls end with this key, or all."""
        ended = [one for one in self.calls if key in (None, self.used(one[0]))][:calls]
        self.calls = [one for one in self.calls if one not in ended]
        for job, permit in ended:
            if job.hold is not None and refused:
                job.hold.note_failure(permit, is_refusal=True)
            elif job.hold is not None:
                job.hold.note_answer(permit, latency_s=0.2, tokens=100, tokens_out=50)
            self.slots.leave(job)
            self.slots.end()
        self.advance()

    def tick(self, seconds: float = 0.1) -> float:
        self.clock.advance(seconds)
        return self.limiter.tick()


Make = Callable[..., Worker]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def world(clock: FakeClock) -> World:
    return World(clock)


@pytest.fixture
def make(world: World, clock: FakeClock) -> Make:
    return lambda *keys, name="w": Worker(name, world, clock, *keys)


def test_with_one_key_there_is_one_limit_under_no_key_as_ever(make: Make, world: World) -> None:
    worker = make(A)
    worker.tick()
    worker.take(100)
    assert worker.slots.keys is None
    assert worker.count() == {None: 16}
    assert (list(world.stores), list(world.ledgers)) == ([""], [""])
    assert (world.ledgers[""].values, world.ledgers[""].slots) == ([16], [16])


def test_each_of_several_keys_begins_with_sixteen_and_no_limit_is_found_for_all(
    make: Make, world: World
) -> None:
    worker = make(A, B)
    worker.tick()
    worker.take(100)
    assert worker.count() == {A: 16, B: 16}
    assert world.found() is None and world.ledgers[""].values == []
    assert [world.ledgers[one.id].values for one in (A, B)] == [[16], [16]]
    worker.tick(1.0)
    assert world.ledgers[""].slots[-1] == 32, "its slots are noted once, for all keys"
    assert world.ledgers[A.id].slots == [256 - 240], "the ledger of the test; the real one ignores it"


def test_a_refusal_of_one_key_lowers_its_own_limit_only(make: Make, world: World) -> None:
    worker = make(A, B)
    worker.tick()
    worker.take(200)
    worker.end(A, calls=1, refused=True)
    assert worker.count()[A] == 15, "no call begins with it before all workers know"
    worker.end(B, calls=5)
    assert worker.count()[B] == 16, "and calls with the other one do"
    worker.tick()
    found = [world.found(one) for one in (A, B)]
    assert [one and one.value for one in found] == [12, 16]
    worker.end(A, calls=5)
    assert worker.count() == {A: 12 - 2, B: 16} or worker.count() == {A: 12, B: 16}


def test_calls_above_a_lowered_limit_take_no_slots_from_another_key(make: Make, world: World) -> None:
    worker = make(A, B)
    worker.tick()
    worker.take(100)
    worker.end(A, calls=1, refused=True)
    worker.tick()
    assert worker.count()[A] > world.values(A)[0]
    worker.end(B)
    assert worker.count()[B] == 16


def test_a_key_that_is_shut_is_passed_by_and_adds_nothing(make: Make) -> None:
    worker = make(A, B)
    worker.shut.add(A)
    worker.tick()
    worker.take(100)
    assert worker.count() == {B: 16}
    assert worker.applied[-1] == 16
    worker.shut.clear()
    worker.tick(1.0)
    assert worker.count() == {A: 16, B: 16}


def test_while_all_keys_are_shut_a_call_may_test_one(make: Make) -> None:
    worker = make(A, B)
    worker.shut |= {A, B}
    worker.tick()
    worker.take(1)
    assert sum(worker.count().values()) == 1


def test_what_is_set_bounds_the_calls_of_all_keys_together(make: Make, world: World) -> None:
    known = world.ledgers[""].known
    world.ledgers[""].known = replace(known, fixed=Fixed(in_flight=10, version_ms=1))
    worker = make(A, B)
    worker.tick()
    worker.take(100)
    assert worker.count() == {A: 5, B: 5}


def test_requests_a_minute_are_of_all_keys_together(make: Make, world: World) -> None:
    world.ledgers[""].known = replace(
        world.ledgers[""].known, fixed=Fixed(requests_per_minute=600, version_ms=1)
    )
    worker = make(A, B)
    worker.tick()
    worker.take(100)
    for _ in range(20):
        worker.tick()
        worker.end()
    begun = 100 - worker.slots.count_waiting()
    assert 18 <= begun <= 20 + 6
    assert {getattr(world.found(one), "value", None) for one in (A, B)} == {16}, (
        "a rate that is reached is no reason to try more"
    )


def test_a_key_begins_with_what_was_found_for_it(make: Make, world: World) -> None:
    world.ledgers[A.id].known = replace(
        world.ledgers[A.id].known, found=Limit(4, 7, Phase.HOLDING, FakeClock().now_ms(), "found", good=4)
    )
    worker = make(A, B)
    worker.tick()
    worker.take(100)
    assert worker.count() == {A: 4, B: 16}


def test_a_key_that_is_added_is_used_and_one_that_is_taken_away_gives_its_share_up(
    make: Make, world: World
) -> None:
    worker = make(A)
    worker.tick()
    worker.take(500)
    assert worker.count() == {None: 16}
    worker.names = (A, B)
    worker.tick(1.0)
    worker.end()
    assert worker.count() == {A: 16, B: 16}
    worker.names = (A, B, C)
    worker.tick(1.0)
    of_a, of_b = worker.count()[A], worker.count()[B]
    assert (of_a, of_b, worker.count()[C]) == (*world.values(A, B), 16)
    worker.names = (B, C)
    worker.tick(1.0)
    worker.end(A, calls=6)
    assert worker.count()[A] == of_a - 6, "its calls go on, and none follows"
    worker.end(A)
    worker.tick(1.0)
    assert world.holders(A) == []
    assert [worker.count()[one] for one in (B, C)] == world.values(B, C)
    worker.names = (C,)
    worker.tick(1.0)
    assert worker.slots.keys is None
    assert (world.holders(B), world.holders(C)) == ([], [])
    worker.end()
    worker.tick()
    worker.end()
    assert worker.count() == {None: getattr(world.found(), "value", 0)}
    assert worker.slots.in_flight == len(worker.calls)


def test_a_key_that_is_back_before_its_calls_have_ended_has_them_still(make: Make) -> None:
    worker = make(A, B, C)
    worker.tick()
    worker.take(200)
    worker.names = (B, C)
    worker.tick(1.0)
    worker.names = (A, B, C)
    worker.tick(1.0)
    worker.end(A, calls=3)
    assert worker.count() == {A: 16, B: 16, C: 16}


def test_a_gate_of_a_key_that_has_opened_begins_slowly_with_this_key_only(make: Make, world: World) -> None:
    worker = make(A, B)
    worker.tick()
    worker.take(100)
    worker.openings[A.id] += 1
    worker.tick(3.0)
    limit = world.found(A)
    assert limit is not None and (limit.value, limit.reason) == (8, "the gate has opened")
    assert getattr(world.found(B), "value", None) == 16


def test_two_workers_share_the_limit_of_each_key(make: Make, world: World) -> None:
    workers = [make(A, B, name=name) for name in ("v", "w")]
    for one in workers:
        one.tick()
        one.take(500)
    for _ in range(6):
        for one in workers:
            one.end(calls=8)
            one.tick()
    first, second = workers
    used, values = first.count() + second.count(), world.values(A, B)
    assert used[A] <= values[0] and used[B] <= values[1]
    assert all(one.count()[key] >= 6 for one in workers for key in (A, B))
    second.limiter.forget("v")
    second.tick()
    assert world.holders(A) == world.holders(B) == ["w"]


def test_after_all_calls_have_ended_no_key_has_any(make: Make) -> None:
    worker = make(A, B)
    worker.tick()
    worker.take(30)
    slots = [job.hold._slot for job, _ in worker.calls if job.hold is not None]
    assert len(slots) == 30
    while worker.calls:
        worker.end(calls=7)
    assert (worker.slots.in_flight, worker.slots.active) == (0, 0)
    assert {slot.in_flight for slot in slots if slot is not None} == {0}


def test_the_end_of_a_worker_gives_all_shares_up(make: Make, world: World) -> None:
    worker = make(A, B)
    worker.tick()
    is_leaving = threading.Event()
    is_leaving.set()
    worker.limiter.run(is_leaving)
    assert world.holders(A) == world.holders(B) == []
