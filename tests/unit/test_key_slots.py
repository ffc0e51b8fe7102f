"""A call has a slot at one of several keys, and goes on with another one only where that has room."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from schemas.failure import FailureKind
from tests.support.clock import FakeClock
from tests.unit.test_pool_slots import Desk as Pool
from tests.unit.test_pool_slots import Job as PoolJob
from tests.unit.test_slots import Job
from worker.attempt.key_slots import KeyHold, KeySlots
from worker.attempt.slots import Slots
from worker.policy.concurrency import start
from worker.throttle.key_gates import KeyGates
from worker.throttle.store import KeyName, MemoryGateStore

A, B, C = (KeyName(f"id-{one}", f"place {one}") for one in "abc")


class Desk:
    """An endpoint with keys, whose limits are as a test says. Calls end when it says so."""

    def __init__(self, clock: FakeClock, **shares: int) -> None:
        self.clock = clock
        self.names = [one for one in (A, B, C) if one.id[-1] in shares]
        self.gates = KeyGates(MemoryGateStore(), clock, probe_ttl_s=60.0, keys=lambda: self.names)
        self.gates.names()
        self.slots: Slots[Job] = Slots(100, 0, monotonic_s=clock.monotonic_s)
        self.unknown = 0
        self.keys = KeySlots(
            self.slots,
            is_open=self.gates.is_key_open,
            on_unknown=self._note_unknown,
            monotonic_s=clock.monotonic_s,
        )
        self.keys.most = 100
        self.slot = {name.id: self.keys.add(name) for name in self.names}
        for epoch, name in enumerate(self.names, 1):
            self.keys.set_share(self.slot[name.id], shares[name.id[-1]])
            self.slot[name.id].epoch = epoch

    def _note_unknown(self) -> None:
        self.unknown += 1

    def begin(self) -> KeyHold:
        self.slots.add(Job())
        [job] = self.slots.take_claimable()
        assert self.slots.add_claimed(job)
        assert self.slots.take_slots() == 1
        started = self.slots.take_started()
        assert started is not None and started.hold is not None
        return started.hold

    @property
    def in_flight(self) -> dict[str, int]:
        return {key_id[-1]: slot.in_flight for key_id, slot in self.slot.items()}


@pytest.fixture
def desk() -> Callable[..., Desk]:
    return lambda **shares: Desk(FakeClock(), **shares)


def test_a_call_is_made_with_the_key_of_its_slot(desk: Callable[..., Desk]) -> None:
    one = desk(a=1, b=3)
    for _ in range(4):
        hold = one.begin()
        permit = one.gates.admit("job", hold)
        assert permit.key is not None and hold._slot is one.slot[permit.key.id]
        assert permit.epoch == hold.epoch == one.slot[permit.key.id].epoch
    assert one.in_flight == {"a": 1, "b": 3}


def test_a_slot_of_a_key_that_was_shut_meanwhile_becomes_one_of_a_key_with_room(
    desk: Callable[..., Desk],
) -> None:
    one = desk(a=1, b=1)
    hold = one.begin()
    assert hold._slot is one.slot[A.id]
    one.gates._keeper(A).cool_down(FailureKind.RATE_LIMITED, asked_s=30)
    permit = one.gates.admit("job", hold)
    assert (permit.key, permit.epoch, one.in_flight) == (B, 2, {"a": 0, "b": 1})
    hold.leave()
    assert one.in_flight == {"a": 0, "b": 0}


def test_a_call_whose_key_was_shut_is_not_made_where_the_others_are_full(desk: Callable[..., Desk]) -> None:
    one = desk(a=1, b=1)
    first, second = one.begin(), one.begin()
    one.gates._keeper(A).cool_down(FailureKind.RATE_LIMITED, asked_s=30)
    assert not one.gates.admit("job", first).is_granted, "its job goes back, and B is not asked for more"
    assert one.gates.admit("other", second).is_granted
    assert one.in_flight == {"a": 1, "b": 1}


def test_a_refused_key_gives_its_call_to_another_one_with_room_only(desk: Callable[..., Desk]) -> None:
    one = desk(a=2, b=1)
    holds = [one.begin(), one.begin(), one.begin()]
    permits = [one.gates.admit(f"job {i}", hold) for i, hold in enumerate(holds)]
    with_a = next(one for one in permits if one.key == A)
    assert not one.gates.change_key(with_a, tried={A.id}, kind=FailureKind.UNAUTHORIZED, job_id="job")
    assert with_a.key == A
    holds[next(i for i, one in enumerate(permits) if one.key == B)].leave()
    assert one.gates.change_key(with_a, tried={A.id}, kind=FailureKind.UNAUTHORIZED, job_id="job")
    assert (with_a.key, with_a.epoch, one.in_flight) == (B, 2, {"a": 1, "b": 1})


def test_a_shut_key_is_probed_without_a_share_of_its_limit(desk: Callable[..., Desk]) -> None:
    one = desk(a=0, b=5)
    one.gates._keeper(A).shut(FailureKind.QUOTA, asked_s=None, job_id="job 1")
    one.clock.advance(1.5)
    permit = one.gates.admit("job 2", one.begin())
    assert permit.key == A and permit.of_key is not None and permit.of_key.is_probe
    assert one.in_flight == {"a": 1, "b": 0}


def test_a_key_that_is_new_has_no_room_before_it_has_a_limit_and_that_is_asked_for(
    desk: Callable[..., Desk],
) -> None:
    one = desk(a=1, b=1)
    holds = [one.begin(), one.begin()]
    one.names = [B, C]
    assert [one.gates.admit("job", hold).is_granted for hold in holds] == [False, True]
    assert one.unknown > 0
    one.slot[C.id] = one.keys.add(C)
    one.keys.set_share(one.slot[C.id], 1)
    assert one.gates.admit("job", holds[0]).key == C
    assert one.in_flight == {"a": 0, "b": 1, "c": 1}


def test_a_refusal_counts_for_the_key_of_the_call(desk: Callable[..., Desk]) -> None:
    one = desk(a=1, b=1)
    told: list[str] = []
    for key_id, slot in one.slot.items():
        slot.meter.on_refusal = lambda key_id=key_id: told.append(key_id)  # type: ignore[misc]
    hold = one.begin()
    permit = one.gates.admit("job", hold)
    for slot in one.slot.values():
        slot.meter.follow(start(None, cap=256, now_ms=0))
    permit.epoch = 1
    hold.leave()
    hold.note_failure(permit, is_refusal=True)
    assert permit.key is not None and told == [permit.key.id]


def test_a_job_that_runs_alone_has_a_slot_at_a_key(desk: Callable[..., Desk]) -> None:
    one = desk(a=0, b=0)
    job = Job()
    assert one.slots.begin_alone(job)
    assert sum(one.in_flight.values()) == 1
    one.slots.end_alone(job)
    assert sum(one.in_flight.values()) == 0


def test_calls_that_a_shutdown_takes_back_have_no_slot_at_a_key(desk: Callable[..., Desk]) -> None:
    one = desk(a=1, b=1)
    for _ in range(2):
        one.slots.add(Job())
    for job in one.slots.take_claimable():
        one.slots.add_claimed(job)
    assert one.slots.take_slots() == 2
    one.slots.stop()
    assert one.in_flight == {"a": 0, "b": 0}


def test_an_endpoint_of_several_whose_keys_are_full_is_passed_by() -> None:
    pool = Pool(10, 10)
    keys = KeySlots(
        pool.ends[0], is_open=lambda _: True, on_unknown=lambda: None, monotonic_s=FakeClock().monotonic_s
    )
    slots = [keys.add(name) for name in (A, B)]
    for slot in slots:
        keys.set_share(slot, 2)
    keys.most = 10
    jobs = [PoolJob() for _ in range(12)]
    pool.take(*jobs)
    assert (len(pool.at(0)), len(pool.at(1))) == (4, 8)
    assert [slot.in_flight for slot in slots] == [2, 2]
    assert keys.count_jobs() == 0
    pool.end(*pool.at(0))
    assert [slot.in_flight for slot in slots] == [0, 0]
