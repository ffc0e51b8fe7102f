"""The adaptive limit finds what an endpoint does the most work with, and stays there."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

from tests.support.limit_scenario import Figures, average_limit, make_world, scenario
from tests.support.modelled_endpoints import Batching, HardLimit, Queue
from tests.support.simulated_workers import lognormal, same
from worker.policy.concurrency import Limit, Phase

# ── an endpoint that refuses ──


# A real worker: a part of its slots is not for bulk, jobs take a while to get into them, and it tells in steps.
_REAL: dict[str, float] = {"gap_s": 0.02, "late_s": 0.3, "steady_tick_s": 0.25, "lone_part": 16}


def _first_run(seed: int, remembered: Limit | None = None, *, workers: int = 2, **options: object) -> Figures:
    world = make_world(HardLimit, seed, jobs=1500, remembered=remembered, workers=workers, **options)
    world.run(300)
    times = [at_s for at_s, _ in world.answered]
    return {
        "seconds": times[-1],
        "of the ideal": 18.75 / times[-1],
        "refused, settled": world.part_refused(8, 300),
        "refused calls": len(world.refused),
        "last 40 jobs (s)": times[-1] - times[-41],
    }


@scenario(
    "unknown",
    "unknown endpoint, refuses above 40, 1,500 jobs of 0.5 s (ideal 18.75 s)",
    at_least={"of the ideal": 0.915},
    at_most={"seconds": 20.5, "refused, settled": 0.02, "refused calls": 60, "last 40 jobs (s)": 1.2},
)
def _unknown(seed: int) -> Figures:
    return _first_run(seed)


@scenario(
    "unknown, four workers",
    "the same, with four workers",
    at_least={"of the ideal": 0.915},
    at_most={"seconds": 20.5, "refused, settled": 0.02, "refused calls": 60, "last 40 jobs (s)": 1.2},
)
def _unknown_to_four(seed: int) -> Figures:
    return _first_run(seed, workers=4)


@scenario(
    "unknown, real",
    "the same, as with a real worker: a part of its slots is not used, and new ones are filled late",
    at_least={"of the ideal": 0.87},
    at_most={"seconds": 22.0, "refused, settled": 0.02, "refused calls": 60, "last 40 jobs (s)": 1.2},
)
def _unknown_real(seed: int) -> Figures:
    return _first_run(seed, workers=1, **_REAL)


@scenario(
    "remembered",
    "the same, in a second run ten minutes later",
    at_least={"of the ideal": 0.96},
    at_most={"refused, settled": 0.02, "refused calls": 5, "last 40 jobs (s)": 1.2},
)
def _remembered(seed: int) -> Figures:
    limit = Limit(40, 9, Phase.HOLDING, -600_000, "", good=40, ceiling=41, is_ceiling_firm=True, round_ms=500)
    return _first_run(seed, limit)


@scenario(
    "long-tailed",
    "refuses above 40, lognormal lengths of 2 s on the average",
    at_least={"work": 0.95},
    at_most={"refused": 0.02},
)
def _long_tailed(seed: int) -> Figures:
    world = make_world(lambda time: HardLimit(time, call_s=2.0), seed, size=lognormal)
    world.run(400)
    return {"work": world.answers(60, 400) / 20, "refused": world.part_refused(60, 400)}


# ── a batching server that never refuses ──


def _batching(
    seed: int,
    *,
    call_s: float,
    knee: int = 24,
    loss: float = 0.0,
    seconds: float = 660,
    workers: int = 2,
    bend: float = 0.15,
    speed: Callable[[float], float] = lambda now_s: 1.0,
    **options: object,
) -> Figures:
    world = make_world(
        lambda time: Batching(time, call_s=call_s, knee=lambda _: knee, loss=loss, bend=bend, speed=speed),
        seed,
        workers=workers,
        **options,
    )
    world.run(seconds)
    server = world.endpoint
    assert isinstance(server, Batching)
    best = knee * (1 - bend) / call_s * statistics.mean(speed(at_s) for at_s in range(60, int(seconds)))
    values = [world.for_bulk(value) for _, value in world.values(60, seconds)]
    return {
        "work from 60 to 120 s": server.done_a_second(60, 120) / best,
        "work in ten minutes": server.done_a_second(60, seconds) / best,
        "limit / knee": world.for_bulk(average_limit(world, 60, seconds)) / knee,
        "highest / knee": max(values) / knee,
    }


_REAL_MOST = {"limit / knee": 1.3, "highest / knee": 1.5}
_KNEE_LEAST = {"work from 60 to 120 s": 0.95, "work in ten minutes": 0.95}
_KNEE_MOST = {"limit / knee": 1.25, "highest / knee": 1.5}


@scenario(
    "knee, 2 s", "batching server, knee at 24, calls of about 2 s", at_least=_KNEE_LEAST, at_most=_KNEE_MOST
)
def _knee_2(seed: int) -> Figures:
    return _batching(seed, call_s=1.7)


def _as_real(seed: int, size: Callable[[random.Random], float]) -> Figures:
    """As with a real worker on a busy machine: its noise, its delays, and a part of its slots that bulk never takes."""
    rng = random.Random(seed + 1000)
    speeds = [rng.uniform(0.95, 1.05) for _ in range(661)]
    return _batching(
        seed,
        call_s=1.0,
        bend=0.0,
        speed=lambda now_s: speeds[int(now_s)],
        workers=1,
        size=size,
        blur=0.05,
        **_REAL,
    )


@scenario(
    "knee, real",
    "the same with calls of 1 s, all of one length, as with a real worker: noise of 5 %, slots that are filled late",
    at_least=_KNEE_LEAST,
    at_most=_REAL_MOST,
)
def _knee_real(seed: int) -> Figures:
    return _as_real(seed, same)


@scenario(
    "knee, real, spread",
    "the same, lengths differ by half",
    at_least=_KNEE_LEAST,
    at_most=_REAL_MOST,
)
def _knee_real_spread(seed: int) -> Figures:
    return _as_real(seed, lambda rng: rng.lognormvariate(-0.125, 0.5))


@scenario("knee, 8 s", "the same, calls of about 8 s", at_least=_KNEE_LEAST, at_most=_KNEE_MOST)
def _knee_8(seed: int) -> Figures:
    return _batching(seed, call_s=7.0)


@scenario(
    "knee, long-tailed",
    "the same, lognormal lengths of 5 s on the average",
    at_least=_KNEE_LEAST,
    at_most=_KNEE_MOST,
)
def _knee_lognormal(seed: int) -> Figures:
    return _batching(seed, call_s=4.0, size=lognormal)


@scenario(
    "knee, noisy",
    "the same, and calls of one length differ by 25 %",
    at_least={"work from 60 to 120 s": 0.7, "work in ten minutes": 0.93},
    at_most={"limit / knee": 1.4, "highest / knee": 1.8},
)
def _knee_noisy(seed: int) -> Figures:
    return _batching(seed, call_s=4.0, size=lognormal, blur=0.25)


@scenario(
    "knee, shaky",
    "knee, long-tailed, and every 2 s the server is up to 20 % faster or slower",
    at_least={"work": 0.93},
    at_most={"limit / knee": 1.6},
)
def _knee_shaky(seed: int) -> Figures:
    rng = random.Random(seed + 1000)
    speeds = [rng.uniform(0.8, 1.2) for _ in range(331)]
    world = make_world(
        lambda time: Batching(time, call_s=4.0, speed=lambda now_s: speeds[int(now_s / 2)]),
        seed,
        size=lognormal,
    )
    world.run(660)
    server = world.endpoint
    assert isinstance(server, Batching)
    best = 24 * 0.85 / 4.0 * sum(speeds[30:330]) / 300
    return {"work": server.done_a_second(60, 660) / best, "limit / knee": average_limit(world, 60, 660) / 24}


@scenario(
    "knee, lossy",
    "knee, long-tailed, but each call above the knee costs 2 % of the work",
    at_least={"work in ten minutes": 0.93},
    at_most={"limit / knee": 1.25, "highest / knee": 1.5},
)
def _knee_lossy(seed: int) -> Figures:
    return _batching(seed, call_s=4.0, loss=0.02, size=lognormal)


@scenario(
    "knee, lossy, noisy",
    "the same, and calls of one length differ by 25 %",
    at_least={"work in ten minutes": 0.87},
    at_most={"limit / knee": 1.25, "highest / knee": 1.5},
)
def _knee_lossy_noisy(seed: int) -> Figures:
    return _batching(seed, call_s=4.0, loss=0.02, size=lognormal, blur=0.25)


@scenario(
    "knee, no usage",
    "the same without usage, calls of about 5 s",
    at_least=_KNEE_LEAST,
    at_most={"limit / knee": 1.5, "highest / knee": 2.0},
)
def _knee_no_usage(seed: int) -> Figures:
    return _batching(seed, call_s=4.0, has_usage=False)


@scenario(
    "knee, no usage, long-tailed",
    "the same without usage, lognormal lengths: only the count of answers is known",
    at_least={"work in ten minutes": 0.7},
    at_most={"limit / knee": 2.2, "highest / knee": 3.0},
)
def _knee_no_usage_lognormal(seed: int) -> Figures:
    return _batching(seed, call_s=4.0, has_usage=False, size=lognormal)


@scenario(
    "knee at 4",
    "a small server: a knee at 4, below the first limit",
    at_least={"work in ten minutes": 0.95},
    at_most={"limit / knee": 2.0},
)
def _knee_4(seed: int) -> Figures:
    return _batching(seed, call_s=2.0, knee=4, size=lognormal, workers=1)


@scenario(
    "knee at 100",
    "a large server: a knee at 100",
    at_least={"work in ten minutes": 0.95},
    at_most={"limit / knee": 1.5},
)
def _knee_100(seed: int) -> Figures:
    return _batching(seed, call_s=3.0, knee=100, size=lognormal, seconds=300)


@scenario(
    "fixed capacity",
    "20 calls at once, the others wait in a queue; lognormal lengths of 1 s on the average",
    at_least={"work": 0.95},
    at_most={"limit": 30},
)
def _fixed(seed: int) -> Figures:
    world = make_world(lambda time: Queue(time, call_s=1.0), seed, size=lognormal)
    world.run(400)
    return {"work": world.done(60, 400) / 20, "limit": average_limit(world, 60, 400)}
