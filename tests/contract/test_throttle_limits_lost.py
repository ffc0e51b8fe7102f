"""Both stores of limits where something is lost or odd: what was found, the clock, what somebody set, other workers."""

from __future__ import annotations

import time

import redis

from tests.contract.test_throttle_limits import ENDPOINT, Make, Worker, found, make
from tests.support.clock import FakeClock
from worker.throttle.limits import SETTLING_MS, SILENT_MS, Change, Fixed, Report, Use
from worker.throttle.redis_limits import RedisLimitStore

__all__ = ["make"]


def test_a_worker_that_seeks_the_limit_has_no_more_slots_than_before_until_one_is_found(make: Make) -> None:
    worker = Worker("a", make(), most=256, share=16)
    worker.exchange()
    assert worker.share == 16
    worker.fixed = Fixed(in_flight=60, version_ms=1)
    worker.exchange()
    assert worker.share == 16
    worker.exchange(Change(found(40)))
    assert worker.share == 40


def test_a_store_that_forgot_everything_grants_nothing_new_before_all_have_told_what_they_hold(
    make: Make, clock: FakeClock
) -> None:
    first, second = Worker("a", make(), share=25, calls=25), Worker("b", make(), share=15, calls=15)
    first.has_others = second.has_others = True
    new = Worker("c", make(), has_others=True)
    new.exchange(Change(found(40)))
    assert new.share == 0
    first.exchange()
    second.exchange()
    assert (first.share, second.share) == (20, 13), "no more than they hold"
    clock.advance(SETTLING_MS / 1000)
    new.exchange()
    assert new.share == 0, "all of it is in use"
    first.end(25)
    second.end(15)
    for worker in (first, second, new, first, second, new):
        worker.exchange()
    assert sorted((first.share, second.share, new.share)) == [13, 13, 14]


def test_workers_go_on_with_less_at_once_where_the_store_forgot_a_limit_that_is_lower_now(
    make: Make, clock: FakeClock
) -> None:
    first, second = Worker("a", make(), share=64, calls=5), Worker("b", make(), share=64, calls=5)
    first.has_others = second.has_others = True
    first.exchange(Change(found(64)))
    for _ in range(3):
        clock.advance(0.1)
        second.exchange()
        first.exchange()
    assert (first.share, second.share) == (32, 32)


def test_a_worker_that_joins_after_the_clock_was_set_back_gets_its_share(
    make: Make, clock: FakeClock
) -> None:
    first, second = Worker("a", make()), Worker("b", make())
    first.exchange(Change(found(40)))
    first.begin()
    clock.jump(-600)
    second.exchange()
    assert second.share == 0, "it is not known yet what the other one holds"
    first.exchange()
    clock.advance(SETTLING_MS / 1000)
    first.end(40)
    for worker in (first, second, first, second):
        worker.exchange()
    assert (first.share, second.share) == (20, 20)


def test_requests_go_on_at_their_rate_when_the_clock_is_set_back(make: Make, clock: FakeClock) -> None:
    worker = Worker("a", make(), fixed=Fixed(requests_per_minute=600, version_ms=1))
    worker.exchange(wanted=100)
    for _ in range(600):
        clock.advance(0.1)
        worker.exchange(wanted=100)
    clock.jump(-30)
    begun = 0
    for _ in range(100):
        clock.advance(0.1)
        worker.exchange(wanted=100)
        begun += worker.permits or 0
    assert 95 <= begun <= 106


def test_what_somebody_set_ends_with_the_last_worker_that_knows_of_it(make: Make, clock: FakeClock) -> None:
    """The other one is of another ledger, or somebody restored an older copy of this one."""
    first = Worker("a", make(), fixed=Fixed(in_flight=10, requests_per_minute=600, version_ms=7))
    other = Worker("b", make())
    first.exchange(is_adaptive=False)
    other.exchange(is_adaptive=False)
    assert (first.share, other.share, other.permits) == (10, 0, 0)
    clock.advance(SILENT_MS / 1000)
    other.exchange(is_adaptive=False)
    assert (other.share, other.permits) == (1000, None)


def test_workers_with_a_number_of_their_own_take_nothing_of_the_found_limit(make: Make) -> None:
    fixed = Fixed(requests_per_minute=60_000, version_ms=1)
    number, seeker = Worker("a", make(), fixed=fixed, most=64), Worker("b", make(), fixed=fixed)
    number.exchange(is_adaptive=False)
    number.begin()
    seeker.exchange(Change(found(16)))
    assert (number.calls, seeker.share) == (64, 16)
    number.fixed = seeker.fixed = Fixed(in_flight=70, version_ms=2)
    number.exchange(is_adaptive=False)
    seeker.exchange()
    assert seeker.share == 6, "what is set is of all workers together"


def test_workers_that_were_killed_have_nothing_in_flight(valkey: redis.Redis) -> None:
    store = RedisLimitStore(valkey, ENDPOINT)
    store.exchange(Report("a", 100, in_flight=7), Fixed())
    assert store.fetch_use() == Use(7, 1)
    store.now_ms = time.time_ns() // 1_000_000 + SILENT_MS
    assert store.fetch_use() is None
