"""What the adaptive limit must do with each kind of endpoint: one simulation for each, and what its figures must be.

`python -m tests.support.limit_scenarios [SEEDS [NAME…]]` prints a table.
"""

from __future__ import annotations

import random
import statistics
import sys
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

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
from tests.support.simulated_workers import World, lognormal
from worker.policy import concurrency
from worker.policy.concurrency import Limit, Phase

Figures = dict[str, float]


@dataclass(frozen=True)
class Scenario:
    """`play(seed)` gives figures by name; `at_least` and `at_most` say what they must be."""

    about: str
    play: Callable[[int], Figures]
    at_least: Figures
    at_most: Figures

    def misses(self, figures: Figures) -> list[str]:
        """What was not reached, in words."""
        low = [
            f"{name} {figures[name]:.3f} < {least}"
            for name, least in self.at_least.items()
            if figures[name] < least
        ]
        high = [
            f"{name} {figures[name]:.3f} > {most}"
            for name, most in self.at_most.items()
            if figures[name] > most
        ]
        return low + high


SCENARIOS: dict[str, Scenario] = {}


def play(name: str, seed: int) -> Figures:
    """The figures of one scenario."""
    return SCENARIOS[name].play(seed)


def _scenario(
    name: str, about: str, *, at_least: Figures | None = None, at_most: Figures | None = None
) -> Callable[[Callable[[int], Figures]], Callable[[int], Figures]]:
    def add(run: Callable[[int], Figures]) -> Callable[[int], Figures]:
        SCENARIOS[name] = Scenario(about, run, at_least or {}, at_most or {})
        return run

    return add


def _world(make: Callable[[Time], Endpoint], seed: int, *, workers: int = 2, **options: object) -> World:
    time = Time()
    world = World(time, make(time), random.Random(seed), **options)  # type: ignore[arg-type]
    for _ in range(workers):
        world.join()
    return world


def _in_flight(world: World, from_s: float, until_s: float) -> float:
    """The limit of this time, on the average."""
    return sum(span_s * value for span_s, value in world.values(from_s, until_s)) / (until_s - from_s)


# ── an endpoint that refuses ──


def _first_run(seed: int, remembered: Limit | None = None) -> Figures:
    world = _world(HardLimit, seed, jobs=1500, remembered=remembered)
    world.run(300)
    times = [at_s for at_s, _ in world.answered]
    return {
        "seconds": times[-1],
        "of the ideal": 18.75 / times[-1],
        "refused, settled": world.part_refused(8, 300),
        "refused calls": len(world.refused),
        "last 40 jobs (s)": times[-1] - times[-41],
    }


@_scenario(
    "unknown",
    "unknown endpoint, refuses above 40, 1,500 jobs of 0.5 s (ideal 18.75 s)",
    at_least={"of the ideal": 0.915},
    at_most={"seconds": 20.5, "refused, settled": 0.02, "refused calls": 60, "last 40 jobs (s)": 1.2},
)
def _unknown(seed: int) -> Figures:
    return _first_run(seed)


@_scenario(
    "remembered",
    "the same, in a second run ten minutes later",
    at_least={"of the ideal": 0.96},
    at_most={"refused, settled": 0.02, "refused calls": 5, "last 40 jobs (s)": 1.2},
)
def _remembered(seed: int) -> Figures:
    limit = Limit(40, 9, Phase.HOLDING, -600_000, "", good=40, ceiling=41, is_ceiling_firm=True, round_ms=500)
    return _first_run(seed, limit)


@_scenario(
    "long-tailed",
    "refuses above 40, lognormal lengths of 2 s on the average",
    at_least={"work": 0.95},
    at_most={"refused": 0.02},
)
def _long_tailed(seed: int) -> Figures:
    world = _world(lambda time: HardLimit(time, call_s=2.0), seed, size=lognormal)
    world.run(400)
    return {"work": world.answers(60, 400) / 20, "refused": world.part_refused(60, 400)}


# ── a batching server that never refuses ──


def _batching(
    seed: int, *, call_s: float, knee: int = 24, seconds: float = 660, workers: int = 2, **options: object
) -> Figures:
    world = _world(
        lambda time: Batching(time, call_s=call_s, knee=lambda _: knee), seed, workers=workers, **options
    )
    world.run(seconds)
    server = world.endpoint
    assert isinstance(server, Batching)
    best = server.rate(knee)
    values = [value for _, value in world.values(60, seconds)]
    return {
        "work from 60 to 120 s": server.done_a_second(60, 120) / best,
        "work in ten minutes": server.done_a_second(60, seconds) / best,
        "limit / knee": _in_flight(world, 60, seconds) / knee,
        "highest / knee": max(values) / knee,
    }


_KNEE_LEAST = {"work from 60 to 120 s": 0.95, "work in ten minutes": 0.95}
_KNEE_MOST = {"limit / knee": 1.25, "highest / knee": 1.5}


@_scenario(
    "knee, 2 s", "batching server, knee at 24, calls of about 2 s", at_least=_KNEE_LEAST, at_most=_KNEE_MOST
)
def _knee_2(seed: int) -> Figures:
    return _batching(seed, call_s=1.7)


@_scenario("knee, 8 s", "the same, calls of about 8 s", at_least=_KNEE_LEAST, at_most=_KNEE_MOST)
def _knee_8(seed: int) -> Figures:
    return _batching(seed, call_s=7.0)


@_scenario(
    "knee, long-tailed",
    "the same, lognormal lengths of 5 s on the average, calls of one length differ by 25 %",
    at_least=_KNEE_LEAST,
    at_most=_KNEE_MOST,
)
def _knee_lognormal(seed: int) -> Figures:
    return _batching(seed, call_s=4.0, size=lognormal, blur=0.25)


@_scenario(
    "knee, no usage",
    "the same without usage, calls of about 5 s",
    at_least=_KNEE_LEAST,
    at_most={"limit / knee": 1.5, "highest / knee": 2.0},
)
def _knee_no_usage(seed: int) -> Figures:
    return _batching(seed, call_s=4.0, has_usage=False)


@_scenario(
    "knee, no usage, long-tailed",
    "the same without usage, lognormal lengths: only the count of answers is known",
    at_least={"work in ten minutes": 0.8},
    at_most={"limit / knee": 1.9, "highest / knee": 3.0},
)
def _knee_no_usage_lognormal(seed: int) -> Figures:
    return _batching(seed, call_s=4.0, has_usage=False, size=lognormal)


@_scenario(
    "knee at 4",
    "a small server: a knee at 4, below the first limit",
    at_least={"work in ten minutes": 0.95},
    at_most={"limit / knee": 2.0},
)
def _knee_4(seed: int) -> Figures:
    return _batching(seed, call_s=2.0, knee=4, size=lognormal, workers=1)


@_scenario(
    "knee at 100",
    "a large server: a knee at 100",
    at_least={"work in ten minutes": 0.95},
    at_most={"limit / knee": 1.5},
)
def _knee_100(seed: int) -> Figures:
    return _batching(seed, call_s=3.0, knee=100, size=lognormal, seconds=300)


@_scenario(
    "fixed capacity",
    "20 calls at once, the others wait in a queue; lognormal lengths of 1 s on the average",
    at_least={"work": 0.95},
    at_most={"limit": 30},
)
def _fixed(seed: int) -> Figures:
    world = _world(lambda time: Queue(time, call_s=1.0), seed, size=lognormal)
    world.run(400)
    return {"work": world.done(60, 400) / 20, "limit": _in_flight(world, 60, 400)}


# ── what changes ──


def _burst(seed: int, call_s: float) -> Figures:
    world = _world(lambda time: HardLimit(time, call_s=call_s, refuses=lambda now_s: 60 <= now_s < 80), seed)
    world.run(100)
    former = world.done(30, 60)
    return {
        "work before": former * call_s / 40,
        "work after 10 s": world.done(90, 100) / former,
        "work in the 10 s": world.done(80, 90) / former,
        "refused calls": bisect_left(world.refused, 82.0) - bisect_left(world.refused, 60.0),
    }


@_scenario(
    "burst, 0.5 s",
    "everything is refused for 20 s; calls of 0.5 s, 40 at once",
    at_least={"work before": 0.95, "work after 10 s": 0.9, "work in the 10 s": 0.6},
    at_most={"refused calls": 150},
)
def _burst_short(seed: int) -> Figures:
    return _burst(seed, 0.5)


@_scenario(
    "burst, 2 s",
    "the same with calls of 2 s",
    at_least={"work before": 0.95, "work after 10 s": 0.9, "work in the 10 s": 0.35},
    at_most={"refused calls": 100},
)
def _burst_long(seed: int) -> Figures:
    return _burst(seed, 2.0)


def _changing(seed: int, make: Callable[[Time], Endpoint], capacity: Callable[[float], int]) -> Figures:
    """The capacity is another one from 120 to 240 s."""
    world = _world(make, seed)
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
        "limit / capacity after a minute": _in_flight(world, 180, 240) / capacity(200),
        "work a minute after the end": work(300, 360),
    }


def _half(calls: int) -> Callable[[float], int]:
    return lambda now_s: calls // 2 if 120 <= now_s < 240 else calls


def _double(calls: int) -> Callable[[float], int]:
    return lambda now_s: calls * 2 if 120 <= now_s < 240 else calls


_CHANGE_LEAST = {"work before": 0.94, "work after a minute": 0.9, "work a minute after the end": 0.9}


@_scenario(
    "half, refuses",
    "refuses above 40, then above 20, then above 40",
    at_least={**_CHANGE_LEAST, "lowest 10 s in the minute": 0.7},
    at_most={"limit / capacity after a minute": 1.1},
)
def _half_refuses(seed: int) -> Figures:
    return _changing(seed, lambda time: HardLimit(time, capacity=_half(40)), _half(40))


@_scenario(
    "half, batching",
    "knee at 24, then at 12, then at 24; calls of 4 s",
    at_least={**_CHANGE_LEAST, "lowest 10 s in the minute": 0.7},
    at_most={"limit / capacity after a minute": 1.5},
)
def _half_batching(seed: int) -> Figures:
    return _changing(seed, lambda time: Batching(time, call_s=3.5, knee=_half(24)), _half(24))


@_scenario("double, refuses", "refuses above 40, then above 80, then above 40", at_least=_CHANGE_LEAST)
def _double_refuses(seed: int) -> Figures:
    return _changing(seed, lambda time: HardLimit(time, capacity=_double(40)), _double(40))


@_scenario("double, batching", "knee at 24, then at 48, then at 24; calls of 4 s", at_least=_CHANGE_LEAST)
def _double_batching(seed: int) -> Figures:
    return _changing(seed, lambda time: Batching(time, call_s=3.5, knee=_double(24)), _double(24))


@_scenario(
    "join and leave",
    "refuses above 40; a second and a third worker join, the first and the second leave",
    at_least={"one": 0.95, "two": 0.95, "joining and leaving": 0.95},
    at_most={"refused": 0.02},
)
def _join(seed: int) -> Figures:
    world = _world(HardLimit, seed, workers=1)
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


@_scenario(
    "gate opens",
    "knee at 24 and a gate that is shut for 10 s",
    at_least={"work after 10 s": 0.9},
    at_most={"first limit": 13, "highest / knee": 1.5},
)
def _gate(seed: int) -> Figures:
    world = _world(
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


@_scenario(
    "rate",
    "5 calls a second, told by refusals only; calls of 1 s",
    at_least={"of the rate": 0.85},
    at_most={"refused": 0.05},
)
def _rate(seed: int) -> Figures:
    world = _world(lambda time: RateLimit(time, call_s=1.0, rate=5.0, burst=10.0), seed)
    world.run(400)
    return {"of the rate": world.answers(60, 400) / 5, "refused": world.part_refused(60, 400)}


@_scenario(
    "minute",
    "600 calls in each minute of the clock, told by refusals only; calls of 1 s",
    at_least={"of the rate": 0.95},
    at_most={"refused": 0.3},
)
def _minute(seed: int) -> Figures:
    world = _world(lambda time: MinuteLimit(time, call_s=1.0, each_minute=600), seed)
    world.run(420)
    return {"of the rate": world.answers(60, 420) / 10, "refused": world.part_refused(60, 420)}


@_scenario(
    "slope",
    "refuses above 1.5 times the average of the last ten seconds; at most 64 at once, calls of 1 s",
    at_least={"second minute": 0.4, "later": 0.9},
    at_most={"refused": 0.06, "refused later": 0.02},
)
def _slope(seed: int) -> Figures:
    world = _world(lambda time: SlopeLimit(time, call_s=1.0), seed, cap=64)
    world.run(240)
    return {
        "second minute": world.answers(60, 120) / 64,
        "later": world.answers(120, 240) / 64,
        "refused": world.part_refused(0, 60),
        "refused later": world.part_refused(120, 240),
    }


@_scenario(
    "flaky",
    "refuses one call in a hundred, whatever is in flight; at most 64 at once",
    at_least={"work": 0.35},
    at_most={"refused": 0.03},
)
def _flaky(seed: int) -> Figures:
    rng = random.Random(seed)
    world = _world(lambda time: Flaky(time, call_s=1.0, rng=rng), seed, cap=64)
    world.run(240)
    return {"work": world.answers(60, 240) / 64, "refused": world.part_refused(60, 240)}


@_scenario(
    "little demand",
    "six calls at once for two minutes, then as many as may be",
    at_least={"work": 0.97, "limit then": 128},
    at_most={"highest limit": 16},
)
def _little(seed: int) -> Figures:
    world = _world(
        lambda time: Queue(time, servers=lambda _: 1000), seed, demand=lambda now_s: 6 if now_s < 120 else 1e9
    )
    world.run(130)
    return {
        "work": world.done(30, 120) / 12,
        "highest limit": max(value for _, value in world.values(0, 120)),
        "limit then": world.limit.value,
    }


def _main(seeds: int, names: list[str]) -> None:
    for name in names or SCENARIOS:
        scenario = SCENARIOS[name]
        played = [scenario.play(seed) for seed in range(seeds)]
        print(f"{name}: {scenario.about}")
        for figure in played[0]:
            values = [one[figure] for one in played]
            bounds = [f">= {scenario.at_least[figure]}"] if figure in scenario.at_least else []
            bounds += [f"<= {scenario.at_most[figure]}"] if figure in scenario.at_most else []
            low, middle, high = min(values), statistics.median(values), max(values)
            print(f"  {figure:34} {low:9.3f} {middle:9.3f} {high:9.3f}  {' '.join(bounds)}")
        missed = sum(bool(scenario.misses(one)) for one in played)
        if missed:
            print(f"  MISSED by {missed} of {seeds} seeds", flush=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]) if len(sys.argv) > 1 else 10, sys.argv[2:])
