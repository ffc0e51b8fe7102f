"""The limiter of a worker: it takes its share, adapts the limit by what all workers saw, and keeps both when it must."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from structlog.testing import capture_logs

from tests.support.clock import FakeClock
from tests.support.slots import Job
from worker.attempt.slots import Slots
from worker.policy.concurrency import Limit, Phase
from worker.throttle.gatekeeper import Permit
from worker.throttle.limiter import Limiter
from worker.throttle.limiter_needs import Known
from worker.throttle.limits import SILENT_MS, MemoryLimitStore
from worker.throttle.meter import Meter


@dataclass
class Ledger:
    """What the ledger knows, shared by the workers."""

    known: Known = field(default_factory=Known)
    values: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    is_away: bool = False

    def fetch(self) -> Known | None:
        return None if self.is_away else self.known

    def remember(self, limit: Limit, *, now_ms: int) -> bool:
        self.values.append(limit.value)
        self.known = replace(self.known, found=limit)
        return not self.is_away

    def note_slots(self, slots: int) -> bool:
        self.slots.append(slots)
        return True


class Worker:
    """A worker with a limiter, and as many jobs as a test gives it. Its calls last until the test ends them."""

    def __init__(
        self,
        name: str,
        store: MemoryLimitStore,
        ledger: Ledger,
        clock: FakeClock,
        *,
        number: int | None = None,
    ) -> None:
        self.clock = clock
        first = number or 16
        self.slots: Slots[Job] = Slots(first, 0, monotonic_s=clock.monotonic_s)
        self.meter = Meter()
        self.openings = 0
        self.calls: list[Permit] = []
        self.limiter = Limiter(
            store,
            ledger,
            self.slots,
            self.meter,
            clock,
            worker_id=name,
            own_limit=number or 256,
            first_limit=first,
            is_adaptive=number is None,
            apply=self._apply,
            advance=self.advance,
            openings=lambda: self.openings,
        )

    def _apply(self, slots: int) -> None:
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
            assert self.slots.add_claimed(job)
        for _ in range(self.slots.take_slots()):
            job = self.slots.take_started()
            assert job is not None
            permit = Permit()
            self.meter.admit(permit, epoch=job.epoch)
            self.calls.append(permit)

    def end(self, calls: int | None = None, *, refused: bool = False, tokens: int = 100) -> None:
        ended = self.calls[: len(self.calls) if calls is None else calls]
        for permit in ended:
            if refused:
                self.meter.note_failure(permit, is_refusal=True)
            else:
                self.meter.note_answer(permit, latency_s=0.2, tokens=tokens, tokens_out=tokens // 2)
            self.slots.leave(Job())
            self.slots.end()
        del self.calls[: len(ended)]
        self.advance()

    def tick(self, seconds: float = 0.1) -> float:
        self.clock.advance(seconds)
        return self.limiter.tick()


Make = Callable[..., Worker]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryLimitStore:
    return MemoryLimitStore(clock.now_ms)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def make(store: MemoryLimitStore, ledger: Ledger, clock: FakeClock) -> Make:
    return lambda name="a", **facts: Worker(name, store, ledger, clock, **facts)


def run_rounds(worker: Worker, rounds: int) -> None:
    """Calls of 0.2 s, as many as the limit allows."""
    for _ in range(rounds):
        worker.tick()
        worker.take(max(0, 600 - worker.slots.demand))
        worker.tick()
        worker.end()


def test_a_number_without_limits_that_are_set_asks_no_store(make: Make, store: MemoryLimitStore) -> None:
    store.is_away = True
    worker = make(number=16)
    with capture_logs() as told:
        assert worker.tick() >= 0.5
    worker.take(20)
    assert (len(worker.calls), told, store._state) == (16, [], None)


def test_the_first_calls_begin_with_sixteen_and_the_limit_is_told_and_kept(
    make: Make, ledger: Ledger
) -> None:
    worker = make()
    with capture_logs() as told:
        worker.tick()
    worker.take(100)
    assert (len(worker.calls), ledger.values, ledger.slots) == (16, [16], [16])
    assert [(one["event"], one["limit"]) for one in told] == [("limit.changed", 16)]
    assert {permit.epoch for permit in worker.calls} == {1}


def test_the_limit_grows_while_more_calls_do_more_work(make: Make, ledger: Ledger) -> None:
    worker = make()
    run_rounds(worker, 60)
    assert ledger.values[:3] == [16, 32, 64]
    assert max(ledger.values) == 256
    assert worker.slots.bulk_limit == ledger.values[-1]


def test_a_limit_that_is_not_reached_does_not_grow(make: Make, ledger: Ledger) -> None:
    worker = make()
    for _ in range(100):
        worker.tick()
        worker.take(3)
        worker.tick()
        worker.end()
    assert ledger.values == [16]


def test_a_refusal_wakes_the_limiter_and_cuts_once_for_all_calls_of_a_round(
    make: Make, ledger: Ledger
) -> None:
    worker = make()
    worker.tick()
    worker.take(100)
    woken = worker.limiter._poked
    woken.clear()
    worker.end(5, refused=True)
    assert woken.is_set()
    worker.tick(0.01)
    assert ledger.values == [16, 12]
    woken.clear()
    worker.end(7, refused=True)
    assert not woken.is_set(), "they were admitted under the higher limit"
    worker.tick(0.01)
    assert ledger.values == [16, 12]
    assert worker.slots.limit == 12


def test_any_worker_decides_by_what_all_saw_and_one_decides(make: Make, ledger: Ledger) -> None:
    first, second = make("a"), make("b")
    for _ in range(12):
        for worker in (first, second):
            worker.tick()
            worker.take(600 - worker.slots.demand)
            worker.end()
    first.tick()
    second.tick()
    assert ledger.values[:2] == [16, 32]
    assert len(set(ledger.values)) == len(ledger.values), "one line for one change"
    assert first.limiter._limit == second.limiter._limit
    assert first.slots.limit + second.slots.limit <= ledger.values[-1]


def test_a_worker_that_was_suspended_begins_no_call_before_it_knows_its_share(
    make: Make, clock: FakeClock
) -> None:
    first, second = make("a"), make("b")
    first.tick()
    first.take(100)
    assert len(first.calls) == 16
    clock.advance(SILENT_MS / 1000)
    second.tick()
    second.take(100)
    assert len(second.calls) == 16, "the first counts as lost"
    first.end()
    assert first.calls == []
    first.tick()
    assert first.calls == [], "all of it is in use"


def test_the_last_share_stays_while_the_store_is_away_and_that_is_told_once(
    make: Make, store: MemoryLimitStore
) -> None:
    worker = make()
    worker.tick()
    worker.take(200)
    store.is_away = True
    with capture_logs() as told:
        for _ in range(40):
            worker.tick(2.0)
            worker.end(1)
    assert [one["event"] for one in told] == ["limit.store_away"]
    assert len(worker.calls) == 16
    store.is_away = False
    with capture_logs() as told:
        worker.tick()
    assert [one["event"] for one in told if one["event"] != "limit.changed"] == ["limit.store_back"]


def test_a_store_that_forgot_the_limit_gets_the_one_that_was_found(
    make: Make, store: MemoryLimitStore
) -> None:
    worker = make()
    run_rounds(worker, 6)
    value = worker.limiter._limit
    assert value is not None and value.good > 16
    in_flight = len(worker.calls)
    worker.take(500)
    store.forget()
    worker.tick()
    assert len(worker.calls) == max(in_flight, value.good), "without a limit none begins"
    after = worker.limiter._limit
    assert after is not None and (after.value, after.epoch > value.epoch) == (value.good, True)


def test_no_more_calls_begin_when_the_store_forgets_the_limit(make: Make, store: MemoryLimitStore) -> None:
    worker = make()
    worker.tick()
    worker.take(100)
    assert len(worker.calls) == 16
    store.forget()
    worker.tick()
    assert len(worker.calls) == 16


def test_the_limit_of_the_last_run_is_remembered(make: Make, ledger: Ledger, clock: FakeClock) -> None:
    ledger.known = Known(found=Limit(48, 70, Phase.HOLDING, clock.now_ms() - 5000, "x", good=48))
    worker = make()
    worker.tick()
    worker.take(100)
    assert len(worker.calls) == 48


def test_an_opened_gate_is_a_slow_start_once_for_all_workers(make: Make, ledger: Ledger) -> None:
    first, second = make("a"), make("b")
    first.tick()
    second.tick()
    run_rounds(first, 10)
    assert ledger.values[-1] > 16
    first.openings = second.openings = 1
    epoch = first.limiter._limit and first.limiter._limit.epoch
    first.tick()
    second.tick()
    limit = second.limiter._limit
    assert limit is not None and epoch is not None
    assert (limit.phase, limit.epoch) == (Phase.STARTING, epoch + 1)


def test_a_gate_that_another_worker_finds_open_later_is_no_second_slow_start(make: Make) -> None:
    first, second = make("a"), make("b")
    first.tick()
    second.tick()
    run_rounds(first, 10)
    first.openings = 1
    first.tick()
    second.tick()
    run_rounds(first, 3)  # the limit has grown again meanwhile
    grown = first.limiter._limit
    assert grown is not None and grown.reason == "doubled"
    second.openings = 1
    second.tick()
    assert second.limiter._limit is not None and second.limiter._limit.value >= grown.value


def test_a_key_that_replaces_one_whose_gate_had_opened_causes_no_slow_start(make: Make) -> None:
    worker = make()
    worker.openings = 3
    worker.tick()
    run_rounds(worker, 10)
    worker.openings = 0
    before = worker.limiter._limit
    worker.tick()
    assert worker.limiter._limit == before
    worker.openings = 1
    worker.tick(3.0)
    after = worker.limiter._limit
    assert after is not None and after.phase is Phase.STARTING


def test_a_worker_that_died_leaves_its_share(make: Make) -> None:
    first, second = make("a"), make("b")
    first.tick()
    first.take(100)
    second.take(100)
    second.tick()
    assert second.slots.limit == 0
    second.limiter.forget("a")
    second.tick()
    assert second.slots.limit == 16


def test_an_error_that_nobody_thought_of_is_told_and_the_share_stays(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, is_leaving = make(), threading.Event()
    worker.tick()

    def fail() -> float:
        is_leaving.set()
        worker.limiter.poke()
        raise KeyError("a defect")

    monkeypatch.setattr(worker.limiter, "tick", fail)
    with capture_logs() as told:
        worker.limiter.run(is_leaving)
    assert [(one["event"], one["share"]) for one in told] == [("limit.failed", 16)]
    assert worker.slots.limit == 16


def test_a_worker_leaves_in_order_where_the_limit_cannot_be_kept(
    make: Make, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, is_leaving = make(), threading.Event()
    worker.tick()
    is_leaving.set()

    def fail(limit: Limit, *, now_ms: int) -> bool:
        raise KeyError("a defect")

    monkeypatch.setattr(ledger, "remember", fail)
    with capture_logs() as told:
        worker.limiter.run(is_leaving)
    assert [one["event"] for one in told] == ["limit.failed"]


def test_a_worker_that_leaves_gives_its_share_up_and_keeps_the_limit(make: Make, ledger: Ledger) -> None:
    first, second = make("a"), make("b")
    first.tick()
    first.take(100)
    second.take(10)
    second.tick()
    assert second.slots.limit == 0
    is_leaving = threading.Event()
    is_leaving.set()
    first.limiter.run(is_leaving)
    second.tick()
    assert second.slots.limit == 16
    assert ledger.values[-1] == 16
