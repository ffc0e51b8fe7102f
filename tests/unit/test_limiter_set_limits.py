"""Limits that somebody set: calls in flight, and requests and tokens a minute, through the limiters of workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.clock import FakeClock
from tests.unit.test_limiter import Ledger, Worker, run_rounds
from worker.policy.concurrency import Limit, Phase
from worker.throttle.limiter import Known
from worker.throttle.limits import Fixed, MemoryLimitStore

Make = Callable[..., Worker]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def make(ledger: Ledger) -> Make:
    clock = FakeClock()
    store = MemoryLimitStore(clock.now_ms)
    return lambda name="a", **facts: Worker(name, store, ledger, clock, **facts)


def test_set_limits_act_while_calls_are_in_flight_and_clearing_them_ends_that(
    make: Make, ledger: Ledger
) -> None:
    first, second = make("a", number=60), make("b", number=60)
    for worker in (first, second):
        worker.tick()
        worker.take(200)
    assert len(first.calls) == len(second.calls) == 60
    ledger.known = Known(Fixed(in_flight=60, version_ms=1))
    for _ in range(3):
        for worker in (first, second):
            worker.tick(0.5)
            worker.end(20)
    for _ in range(3):
        for worker in (first, second):
            worker.tick(0.1)
    assert len(first.calls) + len(second.calls) == 60
    ledger.known = Known(Fixed(version_ms=2))
    for worker in (first, second):
        worker.tick(0.6)
    assert len(first.calls) == len(second.calls) == 60


def test_a_set_limit_holds_from_the_first_call(make: Make, ledger: Ledger) -> None:
    ledger.known = Known(Fixed(in_flight=10, version_ms=1))
    first, second = make("a", number=60), make("b", number=60)
    first.tick()
    first.take(100)
    second.tick()
    second.take(100)
    assert (len(first.calls), len(second.calls)) == (10, 0)


def test_auto_stays_within_a_set_limit(make: Make, ledger: Ledger) -> None:
    ledger.known = Known(Fixed(in_flight=20, version_ms=1))
    worker = make()
    run_rounds(worker, 40)
    assert max(ledger.values) == 20


def test_auto_grows_at_once_when_a_set_limit_is_cleared(make: Make, ledger: Ledger) -> None:
    ledger.known = Known(Fixed(in_flight=2, version_ms=1))
    first = make()
    run_rounds(first, 60)
    assert ledger.values[-1] == 2
    ledger.known = Known(Fixed(version_ms=2))
    run_rounds(first, 20)
    assert ledger.values[-1] >= 64


def test_requests_a_minute_are_permits_that_are_used_up_and_earned_again(make: Make, ledger: Ledger) -> None:
    ledger.known = Known(Fixed(requests_per_minute=600, version_ms=1))
    worker = make(number=64)
    worker.take(0)
    worker.tick()
    worker.slots.lacks = False
    worker.take(500)
    assert worker.slots.lacks, "the limiter is asked at once"
    begun = 0
    for _ in range(600):
        worker.take(500 - worker.slots.demand)
        worker.tick()
        begun += len(worker.calls)
        worker.end()
    assert 570 <= begun <= 612
    ledger.known = Known(Fixed(version_ms=2))
    worker.tick(0.6)
    assert len(worker.calls) == 64


@pytest.mark.parametrize("number", [None, 16])
def test_when_a_rate_is_cleared_calls_begin_although_none_ends(
    make: Make, ledger: Ledger, number: int | None
) -> None:
    """All slots are free, and no job comes: nothing else would begin the jobs that wait for their permits."""
    ledger.known = Known(Fixed(in_flight=16, requests_per_minute=60, version_ms=1))
    worker = make(number=number)
    worker.tick()
    worker.take(100)
    for _ in range(5):
        worker.tick(0.1)
        worker.end()
    assert not worker.calls, "the rate is used up"
    ledger.known = Known(Fixed(in_flight=16, version_ms=2))
    worker.tick(0.6)
    assert len(worker.calls) == 16


def test_tokens_a_minute_are_reserved_by_what_answers_took_lately(make: Make, ledger: Ledger) -> None:
    ledger.known = Known(Fixed(tokens_per_minute=60_000, version_ms=1))
    worker = make(number=64)
    worker.tick()
    used = 0
    for _ in range(1200):
        worker.take(max(0, 200 - worker.slots.demand))
        worker.tick()
        used += 100 * len(worker.calls)
        worker.end(tokens=100)
    assert 2 * 60_000 * 0.95 <= used <= 2 * 60_000 + 1500


def test_permits_that_a_worker_cannot_use_go_back(make: Make, ledger: Ledger) -> None:
    ledger.known = Known(Fixed(requests_per_minute=600, version_ms=1))
    first, second = make("a", number=4), make("b", number=64)
    first.tick()
    first.take(4)
    first.tick()
    assert len(first.calls) == 4
    first.slots.grant(2)
    first.tick(0.0)
    assert first.slots.permits == 0
    second.tick(0.0)
    second.take(50)
    second.tick(0.0)
    assert len(second.calls) >= 2


def test_a_rate_that_another_ledger_has_set_is_kept_and_stops_nobody(clock: FakeClock) -> None:
    store = MemoryLimitStore(clock.now_ms)
    knows = Worker("a", store, Ledger(Known(Fixed(requests_per_minute=600, version_ms=1))), clock)
    other = Worker("b", store, Ledger(), clock)
    for worker in (knows, other):
        worker.tick()
    begun = 0
    for _ in range(300):
        knows.tick()
        other.take(max(0, 30 - other.slots.demand))
        other.tick(0.0)
        begun += len(other.calls)
        other.end()
    assert 290 <= begun <= 312


def test_a_limit_in_flight_that_a_rate_keeps_from_being_reached_does_not_grow(
    make: Make, ledger: Ledger
) -> None:
    ledger.known = Known(Fixed(requests_per_minute=600, version_ms=1))
    worker = make()
    worker.tick()
    begun = 0
    for _ in range(300):
        worker.take(max(0, 600 - worker.slots.demand))
        worker.tick(0.2)
        begun += len(worker.calls)
        worker.end()
    assert 580 <= begun <= 610
    assert set(ledger.values) == {16}
    ledger.known = Known(Fixed(version_ms=2))
    run_rounds(worker, 20)
    assert ledger.values[-1] > 16


def test_a_limit_in_flight_below_what_a_rate_allows_grows(
    make: Make, ledger: Ledger, clock: FakeClock
) -> None:
    now_ms = clock.now_ms()
    found = Limit(1, 5, Phase.HOLDING, now_ms, "test", good=1, round_ms=300, tried_ms=now_ms)
    ledger.known = Known(Fixed(requests_per_minute=6000, version_ms=1), found)
    worker = make()
    worker.tick()
    for _ in range(300):
        worker.take(max(0, 600 - worker.slots.demand))
        for _ in range(3):
            worker.tick(0.1)
        worker.end()
    assert ledger.values[-1] >= 8


def test_limits_that_came_and_went_while_the_store_was_away_stop_nobody(
    ledger: Ledger, clock: FakeClock
) -> None:
    store = MemoryLimitStore(clock.now_ms)
    worker = Worker("a", store, ledger, clock, number=8)
    worker.tick()
    store.is_away = True
    ledger.known = Known(Fixed(in_flight=4, version_ms=1))
    worker.tick(1.0)
    ledger.known = Known(Fixed(version_ms=2))
    worker.tick(1.0)
    clock.advance(60.0)
    worker.take(20)
    assert len(worker.calls) == 8
