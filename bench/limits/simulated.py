"""The same scenarios in the discrete-event simulation of the tests: decisions alone, without workers and sockets."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

from bench.limits.figures import STEP_S, Rows, rows_of_events
from bench.limits.real import NotBuilt
from bench.limits.scenarios import Scenario

_LONGEST_S = 600.0
_WANTED_PERMITS = 64


def run_simulated(scenario: Scenario) -> Rows:
    """What the modelled endpoint saw. Raises NotBuilt if there is no simulation, or none of this scenario."""
    if "requests-per-minute" in scenario.told:
        return _run_permits(scenario, scenario.told["requests-per-minute"])
    try:
        endpoints = importlib.import_module("tests.support.modelled_endpoints")
        workers = importlib.import_module("tests.support.simulated_workers")
    except ModuleNotFoundError:
        raise NotBuilt from None
    build = _ENDPOINTS.get(scenario.name)
    if build is None:
        raise NotBuilt
    time = endpoints.Time()
    options: dict[str, Any] = {"jobs": scenario.jobs} if scenario.length_s is None else {}
    if "in-flight" in scenario.told:
        options["cap"] = scenario.told["in-flight"]
    if "answer_spread" in scenario.endpoint:
        options["size"] = _spread(scenario.endpoint["answer_spread"])
    world = workers.World(time, build(endpoints, time, scenario), random.Random(1), **options)
    for _ in range(scenario.workers):
        world.join()
    world.run(scenario.length_s or _LONGEST_S)
    tokens = scenario.endpoint.get("answer_tokens", 0)
    return rows_of_events(
        world.begun,
        [(at_s, round(size * tokens)) for at_s, size in world.answered],
        world.refused,
        length_s=scenario.length_s or time.now_s + 0.1,
    )


def _run_permits(scenario: Scenario, per_minute: int) -> Rows:
    """Calls that begin as permits are given out, for which a worker asks every tenth of a second."""
    try:
        rates = importlib.import_module("worker.policy.rates")
    except ModuleNotFoundError:
        raise NotBuilt from None
    assert scenario.length_s is not None
    begun: list[float] = []
    paid_us, cost_us = 0, rates.cost_us(per_minute)
    for tick in range(round(scenario.length_s / STEP_S)):
        at_us = round(tick * STEP_S * 1e6)
        granted, paid_us, _ = rates.take(paid_us, now_us=at_us, cost_us=cost_us, wanted=_WANTED_PERMITS)
        begun += [tick * STEP_S] * granted
    answered = [(at_s + scenario.endpoint["latency_s"], 0) for at_s in begun]
    return rows_of_events(begun, answered, [], length_s=scenario.length_s)


def _spread(sigma: float) -> Callable[[random.Random], float]:
    """Lengths of a mean of 1, as those of the simulator."""
    return lambda rng: rng.lognormvariate(-sigma * sigma / 2, sigma)


def _capacity(scenario: Scenario) -> Callable[[float], float]:
    """The factor of the timetable at a moment."""

    def at(now_s: float) -> float:
        passed = [step["capacity"] for step in scenario.steps if step["at_s"] <= now_s]
        return float(passed[-1]) if passed else 1.0

    return at


def _hard_limit(endpoints: Any, time: Any, scenario: Scenario) -> Any:
    limit, factor = scenario.endpoint["refuse_above"], _capacity(scenario)
    call_s = scenario.endpoint["latency_s"]
    return endpoints.HardLimit(time, call_s=call_s, capacity=lambda now_s: int(limit * factor(now_s)))


def _batching(endpoints: Any, time: Any, scenario: Scenario) -> Any:
    call_s = scenario.endpoint["answer_tokens"] / scenario.endpoint["call_tokens_per_s"]
    return endpoints.Batching(time, call_s=call_s, knee=lambda now_s: scenario.endpoint["knee"], bend=0.0)


def _unlimited(endpoints: Any, time: Any, scenario: Scenario) -> Any:
    return endpoints.Endpoint(time, call_s=scenario.endpoint["latency_s"])


_ENDPOINTS: dict[str, Callable[[Any, Any, Scenario], Any]] = {
    "refuses-above": _hard_limit,
    "knee": _batching,
    "burst": _hard_limit,
    "doubles": _hard_limit,
    "two-workers": _unlimited,
}
