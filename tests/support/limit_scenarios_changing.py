"""The adaptive limit follows what changes, and gets along with limits of another kind."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable

from tests.support.limit_scenario import Figures, average_limit, make_world, scenario
from tests.support.modelled_endpoints import (
    Batching,
    Endpoint,
    Flaky,
    HardLimit,
    MinuteLimit,
    Queue,
    RateLimit,
    SlopeLimit,
    Time,
)
from worker.policy import concurrency

# ── what changes ──


def _burst(seed: int, call_s: float) -> Figures:
    world = make_world(
        lambda time: HardLimit(time, call_s=call_s, refuses=lambda now_s: 60 <= now_s < 80), seed
    )
    world.run(100)
    former = world.done(30, 60)
    return {
        "work before": former * call_s / 40,
        "work after 10 s": world.done(90, 100) / former,
        "work in the 10 s": world.done(80, 90) / former,
        "refused calls": bisect_left(world.refused, 82.0) - bisect_left(world.refused, 60.0),
    }


@scenario(
    "burst, 0.5 s",
    "everything is refused for 20 s; calls of 0.5 s, 40 at once",
    at_least={"work before": 0.95, "work after 10 s": 0.9, "work in the 10 s": 0.8},
    at_most={"refused calls": 150},
)
def _burst_short(seed: int) -> Figures:
    return _burst(seed, 0.5)


@scenario(
    "burst, 2 s",
    "the same with calls of 2 s",
    at_least={"work before": 0.95, "work after 10 s": 0.9, "work in the 10 s": 0.55},
    at_most={"refused calls": 100},
)
def _burst_long(seed: int) -> Figures:
    return _burst(seed, 2.0)


def _changing(seed: int, make: Callable[[Time], Endpoint], capacity: Callable[[float], int]) -> Figures:
    """The capacity is another one from 120 to 240 s."""
    world = make_world(make, seed)
    world.run(360)
    server = world.endpoint

    def work(from_s: float, until_s: float) -> float:
        if isinstance(server, Batching):
            return server.done_a_second(from_s, until_s) / server_rate(until_s)
        return world.done(from_s, until_s) / server_rate(until_s)

    def server_rate(at_s: float) -> float:
        calls = capacity(at_s - 1e-6)
        return calls * (1 - server.bend if isinstance(server, Batching) else 1.0) / server.call_s

    lows = [work(at_s, at_s + 10) for at_s in range(120, 180, 10)]
    return {
        "work before": work(60, 120),
        "lowest 10 s in the minute": min(lows),
        "work after a minute": work(180, 240),
        "limit / capacity after a minute": average_limit(world, 180, 240) / capacity(200),
        "work a minute after the end": work(300, 360),
    }


def _half(calls: int) -> Callable[[float], int]:
    return lambda now_s: calls // 2 if 120 <= now_s < 240 else calls


def _double(calls: int) -> Callable[[float], int]:
    return lambda now_s: calls * 2 if 120 <= now_s < 240 else calls


_CHANGE_LEAST = {"work before": 0.94, "work after a minute": 0.9, "work a minute after the end": 0.9}


@scenario(
    "half, refuses",
    "refuses above 40, then above 20, then above 40",
    at_least={**_CHANGE_LEAST, "lowest 10 s in the minute": 0.7},
    at_most={"limit / capacity after a minute": 1.1},
)
def _half_refuses(seed: int) -> Figures:
    return _changing(seed, lambda time: HardLimit(time, capacity=_half(40)), _half(40))


@scenario(
    "half, batching",
    "knee at 24, then at 12, then at 24; calls of 4 s",
    at_least={**_CHANGE_LEAST, "lowest 10 s in the minute": 0.7},
    at_most={"limit / capacity after a minute": 1.5},
)
def _half_batching(seed: int) -> Figures:
    return _changing(seed, lambda time: Batching(time, call_s=3.5, knee=_half(24)), _half(24))


@scenario("double, refuses", "refuses above 40, then above 80, then above 40", at_least=_CHANGE_LEAST)
def _double_refuses(seed: int) -> Figures:
    return _changing(seed, lambda time: HardLimit(time, capacity=_double(40)), _double(40))


@scenario("double, batching", "knee at 24, then at 48, then at 24; calls of 4 s", at_least=_CHANGE_LEAST)
def _double_batching(seed: int) -> Figures:
    return _changing(seed, lambda time: Batching(time, call_s=3.5, knee=_double(24)), _double(24))


@scenario(
    "restless",
    "refuses above a number from 25 to 40 that is another one every 15 s",
    at_least={"work": 0.85},
    at_most={"refused": 0.02},
)
def _restless(seed: int) -> Figures:
    rng = random.Random(seed + 1000)
    numbers = [rng.randint(25, 40) for _ in range(20)]
    world = make_world(lambda time: HardLimit(time, capacity=lambda now_s: numbers[int(now_s / 15)]), seed)
    world.run(240)
    most = sum(numbers[4:16]) / 12 / 0.5
    return {"work": world.done(60, 240) / most, "refused": world.part_refused(60, 240)}


@scenario(
    "join and leave",
    "refuses above 40; a second and a third worker join, the first and the second leave",
    at_least={"one": 0.95, "two": 0.95, "joining and leaving": 0.95},
    at_most={"refused": 0.02},
)
def _join(seed: int) -> Figures:
    world = make_world(HardLimit, seed, workers=1)
    world.time.after(60, lambda: world.join() and None)
    world.time.after(90, lambda: world.join() and None)
    world.time.after(120, lambda: world.leave(world.workers[1]))
    world.time.after(130, lambda: world.leave(world.workers[0]))
    world.run(180)
    return {
        "one": world.done(30, 60) / 80,
        "two": world.done(60, 90) / 80,
        "joining and leaving": world.done(90, 180) / 80,
        "refused": world.part_refused(30, 180),
    }


@scenario(
    "gate opens",
    "knee at 24 and a gate that is shut for 10 s",
    at_least={"work after 10 s": 0.9},
    at_most={"first limit": 13, "highest / knee": 1.5},
)
def _gate(seed: int) -> Figures:
    world = make_world(
        lambda time: Batching(time, call_s=1.7), seed, demand=lambda now_s: 0 if 60 <= now_s < 70 else 1e9
    )
    firsts: list[int] = []

    def reopen() -> None:
        world.replace(concurrency.reopen(world.limit, cap=world.cap, now_ms=world.now_ms))
        firsts.append(world.limit.value)

    world.time.after(70, reopen)
    world.run(120)
    server = world.endpoint
    assert isinstance(server, Batching)
    return {
        "first limit": firsts[0],
        "work after 10 s": server.done_a_second(80, 120) / server.done_a_second(40, 60),
        "highest / knee": max(value for _, value in world.values(70, 120)) / 24,
    }


# ── limits of another kind ──


@scenario(
    "rate",
    "5 calls a second, told by refusals only; calls of 1 s",
    at_least={"of the rate": 0.8},
    at_most={"refused": 0.05},
)
def _rate(seed: int) -> Figures:
    world = make_world(lambda time: RateLimit(time, call_s=1.0, rate=5.0, burst=10.0), seed)
    world.run(400)
    return {"of the rate": world.answers(60, 400) / 5, "refused": world.part_refused(60, 400)}


@scenario(
    "minute",
    "600 calls in each minute of the clock, told by refusals only; calls of 1 s",
    at_least={"of the rate": 0.95},
    at_most={"refused": 0.3},
)
def _minute(seed: int) -> Figures:
    world = make_world(lambda time: MinuteLimit(time, call_s=1.0, each_minute=600), seed)
    world.run(420)
    return {"of the rate": world.answers(60, 420) / 10, "refused": world.part_refused(60, 420)}


@scenario(
    "slope",
    "refuses above 1.5 times the average of the last ten seconds; at most 64 at once, calls of 1 s",
    at_least={"second minute": 0.4, "later": 0.9},
    at_most={"refused": 0.06, "refused later": 0.02},
)
def _slope(seed: int) -> Figures:
    world = make_world(lambda time: SlopeLimit(time, call_s=1.0), seed, cap=64)
    world.run(240)
    return {
        "second minute": world.answers(60, 120) / 64,
        "later": world.answers(120, 240) / 64,
        "refused": world.part_refused(0, 60),
        "refused later": world.part_refused(120, 240),
    }


@scenario(
    "flaky",
    "refuses one call in a hundred, whatever is in flight; at most 64 at once",
    at_least={"work": 0.4},
    at_most={"refused": 0.03},
)
def _flaky(seed: int) -> Figures:
    rng = random.Random(seed)
    world = make_world(lambda time: Flaky(time, call_s=1.0, rng=rng), seed, cap=64)
    world.run(240)
    return {"work": world.answers(60, 240) / 64, "refused": world.part_refused(60, 240)}


@scenario(
    "little demand",
    "six calls at once for two minutes, then as many as may be",
    at_least={"work": 0.97, "limit then": 128},
    at_most={"highest limit": 16},
)
def _little(seed: int) -> Figures:
    world = make_world(
        lambda time: Queue(time, servers=lambda _: 1000), seed, demand=lambda now_s: 6 if now_s < 120 else 1e9
    )
    world.run(130)
    return {
        "work": world.done(30, 120) / 12,
        "highest limit": max(value for _, value in world.values(0, 120)),
        "limit then": world.limit.value,
    }
