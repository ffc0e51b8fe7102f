"""Limits that answers tell, in both stores of limits. The stores must say the same, word for word."""

from __future__ import annotations

import random

import redis

from tests.contract.test_throttle_limits import ENDPOINT
from tests.support.clock import FakeClock
from worker.policy.told_windows import Window
from worker.throttle.limits import Fixed, MemoryLimitStore, Report, Share
from worker.throttle.redis_limits import RedisLimitStore
from worker.throttle.told_marks import ToldReport


class Both:
    """A store in memory and one in Valkey, told the same."""

    def __init__(self, valkey: redis.Redis, clock: FakeClock) -> None:
        self.clock = clock
        self.memory, self.valkey = MemoryLimitStore(clock.now_ms), RedisLimitStore(valkey, ENDPOINT)

    def exchange(self, report: Report, fixed: Fixed | None = None) -> Share:
        self.valkey.now_ms = self.clock.now_ms()
        fixed = fixed or Fixed()
        share = self.memory.exchange(report, fixed)
        assert self.valkey.exchange(report, fixed) == share
        return share

    def ask(self, name: str, *, wanted: int = 100, words: ToldReport | None, **facts: int) -> int | None:
        report = Report(name, 50, is_adaptive=False, wanted=wanted, told=words, **facts)
        return self.exchange(report).permits


def window(left: int, *, late_ms: int = 20_000, limit: int = 300, each_us: int = 0) -> Window:
    return Window(left, limit, late_ms - 200, late_ms, late_ms, 0, each_us)


def test_workers_share_what_remains_and_no_call_of_either_is_forgotten(
    valkey: redis.Redis, clock: FakeClock
) -> None:
    both = Both(valkey, clock)
    assert both.ask("a", words=None) is None
    words = ToldReport("key model", begun=5, in_flight=10, uncounted=10, requests=window(60))
    assert both.ask("a", words=words, in_flight=10) == 50
    assert both.ask("b", words=ToldReport("key model", in_flight=0)) == 0, "the first one has the others"
    used = ToldReport("key model", begun=20, held=0, in_flight=30, uncounted=30)
    assert both.ask("a", words=used, wanted=0) == 0
    assert both.ask("b", words=ToldReport("key model"), wanted=100) == 15, "half of what nobody uses"
    assert both.ask("c", words=ToldReport("other model")) is None, "another key or model has other limits"


def test_after_the_reset_the_limit_is_there_again_and_is_given_up_when_nobody_tells_it(
    valkey: redis.Redis, clock: FakeClock
) -> None:
    both = Both(valkey, clock)
    words = ToldReport("key model", requests=window(0), tokens=window(500, late_ms=5_000))
    assert both.ask("a", words=words) == 0
    quiet = ToldReport("key model", in_flight=200, uncounted=200)
    share = both.exchange(Report("a", 50, is_adaptive=False, wanted=9, told=quiet))
    assert (share.permits, share.wait_ms) == (0, 20_000)
    clock.advance(20.0)
    assert both.ask("a", words=quiet) == 100, "and 200 are in flight"
    clock.advance(20.0)
    assert both.ask("a", words=quiet) is None


def test_a_set_limit_and_a_told_one_hold_both(valkey: redis.Redis, clock: FakeClock) -> None:
    both, fixed = Both(valkey, clock), Fixed(requests_per_minute=600)
    words = ToldReport("key model", requests=window(4))
    report = Report("a", 50, is_adaptive=False, wanted=100, told=words)
    assert both.exchange(report, fixed).permits == 4
    plenty = ToldReport("key model", requests=window(5_000, late_ms=60_000, limit=5_000))
    share = both.exchange(Report("a", 50, is_adaptive=False, wanted=100, told=plenty), fixed)
    assert share.permits is not None and share.permits <= 6


def test_both_stores_say_the_same_of_anything_that_is_told(valkey: redis.Redis, clock: FakeClock) -> None:
    rng, both = random.Random(7), Both(valkey, clock)

    def some() -> Window | None:
        if rng.random() < 0.5:
            return None
        late_ms, limit = rng.choice([-50, 300, 3_000, 60_000]), rng.choice([0, 10, 300])
        each_us = rng.choice([0, 0, 150_000])
        return Window(
            rng.randrange(300),
            limit,
            late_ms - rng.randrange(9_000),
            late_ms,
            60_000,
            -rng.randrange(99),
            each_us,
        )

    for _ in range(400):
        words = ToldReport(
            rng.choice(["k m", "k n"]),
            begun=rng.randrange(9),
            held=rng.randrange(9),
            in_flight=rng.randrange(40),
            uncounted=rng.randrange(40),
            requests=some(),
            tokens=some(),
        )
        both.ask(
            rng.choice("abc"),
            words=None if rng.random() < 0.1 else words,
            wanted=rng.randrange(60),
            in_flight=rng.randrange(40),
        )
        clock.advance(rng.choice([0.1, 0.1, 1.0, 15.0]))
    clock.jump(-7200)
    assert both.ask("a", words=ToldReport("k m")) is None, "the clock was set back: nothing is known"
