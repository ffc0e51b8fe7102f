"""One contract for both stores of limits: in memory, and in a real Valkey. Two stores are two workers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.clock import FakeClock
from worker.policy.concurrency import Limit, Phase
from worker.policy.flow import NOTHING, Flow
from worker.throttle.limits import (
    SILENT_MS,
    Change,
    Fixed,
    LimitStore,
    MemoryLimitStore,
    Report,
    StoreAway,
)
from worker.throttle.redis_limits import RedisLimitStore

ENDPOINT = "https://endpoint.test"
Make = Callable[[], LimitStore]


@pytest.fixture(params=["memory", "valkey"])
def make(request: pytest.FixtureRequest, clock: FakeClock) -> Make:
    """The store as one more worker reaches it. All go by the test's clock."""
    if request.param == "memory":
        store = MemoryLimitStore(clock.now_ms)
        return lambda: store
    valkey = request.getfixturevalue("valkey")

    class Timed(RedisLimitStore):
        def exchange(self, *args, **options):  # type: ignore[no-untyped-def]
            self.now_ms = clock.now_ms()
            return super().exchange(*args, **options)

    return lambda: Timed(valkey, ENDPOINT)


def found(value: int, epoch: int = 1) -> Limit:
    return Limit(value, epoch, Phase.HOLDING, since_ms=0, reason="test", ceiling=None)


@dataclass
class Worker:
    """Starts calls up to its share when told to, and ends them when told to."""

    name: str
    store: LimitStore
    fixed: Fixed = field(default_factory=Fixed)
    most: int = 1000
    wants: int = 1000
    share: int = 0
    calls: int = 0
    has_others: bool = False
    permits: int | None = None
    told: list[int] = field(default_factory=list)

    def exchange(self, change: Change | None = None, **facts: int) -> None:
        report = Report(
            self.name,
            self.most,
            applied=self.share,
            in_flight=self.calls,
            demand=max(self.wants, self.calls),
        )
        answer = self.store.exchange(replace(report, **facts), self.fixed, change, has_others=self.has_others)
        self.share, self.permits = answer.slots, answer.permits
        self.told.append(answer.slots)

    def begin(self) -> None:
        self.calls = max(self.calls, min(self.share, self.wants))

    def end(self, calls: int) -> None:
        self.calls = max(0, self.calls - calls)


def test_one_worker_has_all_of_the_limit_also_when_it_wants_nothing(make: Make) -> None:
    worker = Worker("a", make(), wants=0)
    worker.exchange(Change(found(40)))
    assert worker.share == 40
    worker.wants = 3
    worker.exchange()
    assert worker.share == 40


def test_without_a_limit_each_has_what_it_may_make_itself(make: Make) -> None:
    worker = Worker("a", make(), most=17)
    worker.exchange(is_adaptive=False)
    assert (worker.share, worker.permits) == (17, None)


def test_a_share_grows_only_out_of_what_the_other_has_given_up(make: Make) -> None:
    first, second = Worker("a", make()), Worker("b", make())
    first.exchange(Change(found(60)))
    first.begin()
    assert first.calls == 60
    second.exchange()
    assert second.share == 0, "all of it is in use"
    first.exchange()
    assert first.share == 30
    second.exchange()
    assert second.share == 0, "calls in flight are held"
    first.end(20)
    first.exchange()
    second.exchange()
    assert second.share == 20
    first.end(40)
    first.exchange()
    second.exchange()
    assert (first.share, second.share) == (30, 30)


def test_a_small_demand_is_met_and_the_rest_is_the_others(make: Make) -> None:
    hungry, modest = Worker("a", make()), Worker("b", make(), wants=4)
    hungry.exchange(Change(found(40)))
    for _ in range(3):  # it is told, it has told, and then the other may have it
        modest.exchange()
        hungry.exchange()
    modest.exchange()
    assert (hungry.share, modest.share) == (36, 4)


def test_a_worker_that_ends_leaves_its_share_at_once_and_one_that_falls_silent_later(
    make: Make, clock: FakeClock
) -> None:
    first, second, third = (Worker(name, make()) for name in "abc")
    first.exchange(Change(found(60)))
    for _ in range(4):
        for worker in (first, second, third):
            worker.exchange()
    assert [first.share, second.share, third.share] == [20, 20, 20]
    third.store.leave("c")
    for _ in range(2):
        first.exchange()
        second.exchange()
    assert [first.share, second.share] == [30, 30]
    clock.advance(SILENT_MS / 1000 - 0.1)
    first.exchange()
    assert first.share == 30, "the second may only be slow"
    clock.advance(0.1)
    first.exchange()
    assert first.share == 60


def test_a_limit_is_replaced_by_the_first_who_knows_its_epoch(make: Make) -> None:
    first, second = make(), make()
    one, two = Report("a", 100), Report("b", 100)
    assert first.exchange(one, Fixed(), Change(found(16))).has_changed
    assert not second.exchange(two, Fixed(), Change(found(99))).has_changed
    seen = second.exchange(two, Fixed())
    assert seen.limit == found(16)
    assert second.exchange(two, Fixed(), Change(found(32, 2), of_epoch=1)).has_changed
    late = first.exchange(one, Fixed(), Change(found(8, 2), of_epoch=1))
    assert (late.has_changed, late.limit) == (False, found(32, 2))


def test_what_all_workers_saw_of_an_epoch_is_added_and_begins_anew_with_the_next(make: Make) -> None:
    first, second = make(), make()
    seen = Flow(answers=3, tokens=100, call_ms=700, refusals=1, full_ms=50)
    first.exchange(Report("a", 100), Fixed(), Change(found(16)))
    first.exchange(Report("a", 100, epoch=1, flow=seen), Fixed())
    assert second.exchange(Report("b", 100, epoch=1, flow=seen), Fixed()).flow == seen + seen
    assert second.exchange(Report("b", 100, epoch=9, flow=seen), Fixed()).flow == seen + seen
    told = second.exchange(Report("b", 100, epoch=1, flow=seen), Fixed(), Change(found(20, 2), of_epoch=1))
    assert told.flow == NOTHING
    assert first.exchange(Report("a", 100, epoch=1, flow=seen), Fixed()).flow == NOTHING


def test_the_newest_of_the_limits_that_are_set_counts(make: Make) -> None:
    first, second = make(), make()
    old, new = Fixed(in_flight=60, version_ms=5), Fixed(in_flight=10, version_ms=6)
    of_first = Report("a", 100, is_adaptive=False, demand=100)
    assert first.exchange(of_first, old).slots == 60
    assert second.exchange(Report("b", 100), new).slots == 0
    assert first.exchange(of_first, old).slots == 10
    assert first.exchange(of_first, Fixed(version_ms=7)).slots == 100


def test_the_lower_of_a_set_and_a_found_limit_counts_and_a_fixed_worker_goes_by_the_set_one(
    make: Make,
) -> None:
    store = make()
    fixed = Fixed(in_flight=30, version_ms=1)
    assert store.exchange(Report("a", 100, demand=100), fixed, Change(found(16))).slots == 16
    assert store.exchange(Report("a", 100, demand=100), fixed, Change(found(90, 2), of_epoch=1)).slots == 30
    assert store.exchange(Report("a", 25, is_adaptive=False, demand=100), fixed).slots == 25


def test_where_there_are_more_workers_than_calls_each_has_its_turn(make: Make, clock: FakeClock) -> None:
    workers = [Worker(name, make()) for name in "abcd"]
    workers[0].exchange(Change(found(2)))
    had: set[str] = set()
    for _ in range(200):
        clock.advance(0.1)
        for worker in workers:
            worker.exchange()
            worker.begin()
            worker.end(1)
            had |= {worker.name} if worker.share else set()
        assert sum(worker.share for worker in workers) <= 2
    assert had == set("abcd")


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_workers_that_join_die_hang_and_shrink_passes_the_limit(
    make: Make, clock: FakeClock, seed: int
) -> None:
    rng, limit, names = random.Random(seed), 40, iter(range(1, 1000))
    workers = [Worker("w0", make())]
    workers[0].exchange(Change(found(limit)))
    hung_until: dict[str, int] = {}
    reported = {"w0": clock.now_ms()}
    used = 0
    for _ in range(600):
        clock.advance(rng.choice([0.02, 0.1, 0.3]))
        for worker in workers:
            is_late = reported.get(worker.name, 0) < clock.now_ms() - 1000
            if is_late and hung_until.get(worker.name, 0) <= clock.now_ms():
                worker.exchange()
                reported[worker.name] = clock.now_ms()
        worker = rng.choice(workers)
        if hung_until.get(worker.name, 0) > clock.now_ms():
            continue  # it neither reports nor begins calls; those in flight go on
        act = rng.random()
        if act < 0.5:
            worker.wants = rng.choice([0, 3, 20, 500])
            worker.exchange()
            reported[worker.name] = clock.now_ms()
        elif act < 0.8:
            worker.begin()
        elif act < 0.94:
            worker.end(rng.randrange(10))
        elif act < 0.97 and len(workers) < 5:
            workers.append(Worker(f"w{next(names)}", make()))
        elif act < 0.98 and len(workers) > 1:
            workers.remove(worker)  # killed: its calls end with it
        elif len(workers) > 1:
            hung_until[worker.name] = clock.now_ms() + rng.choice([1000, 10_000, SILENT_MS - 2000])
        held = sum(max(one.share, one.calls) for one in workers)
        assert held <= limit, [(one.name, one.share, one.calls) for one in workers]
        used = max(used, held)
    assert used == limit


@pytest.mark.default_cases(4)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_six_hundred_requests_a_minute_are_kept_by_all_workers_together(
    make: Make, clock: FakeClock, workers: int
) -> None:
    fixed, rng = Fixed(requests_per_minute=600, version_ms=1), random.Random(workers)
    stores = [make() for _ in range(workers)]
    begun: list[tuple[int, int]] = []
    for _ in range(1800):
        clock.advance(0.1 / workers)
        index = rng.randrange(workers)
        answer = stores[index].exchange(Report(f"w{index}", 64, demand=64, wanted=8), fixed)
        assert answer.permits is not None
        begun.append((clock.now_ms(), answer.permits))
    start_ms, end_ms = begun[0][0], begun[-1][0]
    for at_ms, _ in begun:
        within = sum(count for ms, count in begun if at_ms <= ms < at_ms + 60_000)
        assert within <= 612
        if at_ms + 60_000 <= end_ms:
            assert within >= 570
    assert end_ms - start_ms > 35_000


def test_permits_that_were_not_used_go_to_others(make: Make) -> None:
    fixed = Fixed(requests_per_minute=600, version_ms=1)
    first, second = make(), make()
    assert first.exchange(Report("a", 64, wanted=100), fixed).permits == 6
    none = second.exchange(Report("b", 64, wanted=100), fixed)
    assert (none.permits, none.wait_ms) == (0, 100)
    assert first.exchange(Report("a", 64, unused=4), fixed).permits == 0
    assert second.exchange(Report("b", 64, wanted=100), fixed).permits == 4


def test_tokens_are_reserved_before_a_call_and_settled_after_it(make: Make, clock: FakeClock) -> None:
    store, fixed = make(), Fixed(tokens_per_minute=60_000, version_ms=1)
    asked = Report("a", 64, wanted=50, each_tokens=200)
    assert store.exchange(asked, fixed).permits == 3, "a burst is 1 % of a minute: 600 tokens"
    assert store.exchange(asked, fixed).permits == 0
    assert store.exchange(replace(asked, back_tokens=450), fixed).permits == 2
    assert store.exchange(replace(asked, back_tokens=-2000), fixed).permits == 0
    clock.advance(1.0)
    assert store.exchange(asked, fixed).permits == 0, "what was used beyond it is made up for first"
    clock.advance(2.0)
    assert store.exchange(asked, fixed).permits == 3


def test_the_scarcer_of_requests_and_tokens_counts_and_only_what_is_granted_is_paid(make: Make) -> None:
    store = make()
    both = Fixed(requests_per_minute=600, tokens_per_minute=60_000, version_ms=1)
    assert store.exchange(Report("a", 64, wanted=9, each_tokens=300), both).permits == 2
    requests = Fixed(requests_per_minute=600, version_ms=2)
    assert store.exchange(Report("a", 64, wanted=9, each_tokens=300), requests).permits == 4


def test_a_call_larger_than_the_burst_gets_its_turn(make: Make, clock: FakeClock) -> None:
    store, fixed = make(), Fixed(tokens_per_minute=6_000, version_ms=1)
    asked = Report("a", 64, wanted=5, each_tokens=1000)
    assert store.exchange(asked, fixed).permits == 1
    wait = store.exchange(asked, fixed)
    assert (wait.permits, wait.wait_ms) == (0, 10_000)
    clock.advance(10.0)
    assert store.exchange(asked, fixed).permits == 1


@pytest.mark.parametrize("is_cleared_between", [False, True])
def test_a_rate_that_is_raised_holds_at_once(make: Make, clock: FakeClock, is_cleared_between: bool) -> None:
    store, asked = make(), Report("a", 64, wanted=9, each_tokens=100)
    low = Fixed(requests_per_minute=1, tokens_per_minute=10, version_ms=1)
    assert store.exchange(asked, low).permits == 1
    clock.advance(1.0)
    assert store.exchange(asked, low).permits == 0
    if is_cleared_between:
        store.exchange(replace(asked, wanted=0), Fixed(version_ms=2))
    high = Fixed(requests_per_minute=600, tokens_per_minute=600_000, version_ms=3)
    assert store.exchange(asked, high).permits == 5, "six at once, and one has begun"


@pytest.mark.parametrize("seed", range(8))
def test_lua_and_python_agree_on_random_reports(clock: FakeClock, valkey: redis.Redis, seed: int) -> None:
    rng = random.Random(seed)
    mine, lua = MemoryLimitStore(clock.now_ms), RedisLimitStore(valkey, f"{ENDPOINT}/{seed}")
    names = [f"w{n}" for n in range(rng.randrange(1, 6))]
    epoch, version = 0, 1
    fixed = Fixed(version_ms=version)
    for _ in range(250):
        clock.advance(rng.choice([0, 0.001, 0.05, 0.1, 0.5, 3]))
        if rng.random() < 0.05:
            version += rng.choice([-1, 1, 1])
            fixed = Fixed(
                rng.choice([None, 0, 5, 60]),
                rng.choice([None, 1, 7, 600, 100_000]),
                rng.choice([None, 999, 60_000]),
                version,
            )
        change = None
        if rng.random() < 0.1:
            change = Change(found(rng.randrange(1, 300), epoch + 1), of_epoch=rng.choice([epoch, 0, 1]))
        report = Report(
            rng.choice(names),
            most=rng.choice([4, 64, 256]),
            is_adaptive=rng.random() < 0.9,
            applied=rng.randrange(70),
            in_flight=rng.randrange(70),
            demand=rng.choice([0, 1, 5, 50, 500]),
            epoch=epoch,
            flow=Flow(*(rng.randrange(1000) for _ in range(9))),
            wanted=rng.randrange(20),
            unused=rng.choice([0, 0, 3]),
            each_tokens=rng.choice([1, 80, 2000]),
            back_tokens=rng.randrange(-500, 500),
        )
        lua.now_ms, has_others = clock.now_ms(), rng.random() < 0.5
        told = lua.exchange(report, fixed, change, has_others=has_others)
        assert told == mine.exchange(report, fixed, change, has_others=has_others)
        epoch = 0 if told.limit is None else told.limit.epoch
        if rng.random() < 0.02:
            for store in (mine, lua):
                store.leave(report.worker_id)


def test_a_broker_that_is_away_or_holds_something_else_is_said_as_one_error(valkey: redis.Redis) -> None:
    away = redis.Redis(port=1, retry=Retry(NoBackoff(), 0))
    with pytest.raises(StoreAway, match="ConnectionError"):
        RedisLimitStore(away, ENDPOINT).exchange(Report("a", 1), Fixed())
    with pytest.raises(StoreAway):
        RedisLimitStore(away, ENDPOINT).leave("a")
    store = RedisLimitStore(valkey, ENDPOINT)
    valkey.set(store._key, b"nonsense")
    with pytest.raises(StoreAway, match="ResponseError"):
        store.exchange(Report("a", 1), Fixed())


def test_each_endpoint_and_key_has_limits_of_its_own(valkey: redis.Redis) -> None:
    stores = [
        RedisLimitStore(valkey, ENDPOINT),
        RedisLimitStore(valkey, "https://other.test"),
        RedisLimitStore(valkey, ENDPOINT, key_id="abc"),
    ]
    for value, store in enumerate(stores, 1):
        assert store.exchange(Report("a", 100, demand=9), Fixed(), Change(found(value))).slots == value
