"""The same scenarios in the discrete-event simulation of the tests: decisions alone, without workers and sockets."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

from bench.limits.figures import Rows, rows_of_events
from bench.limits.real import NotBuilt
from bench.limits.scenarios import Scenario

_LONGEST_S = 600.0


def run_simulated(scenario: Scenario) -> Rows:
    """What the modelled endpoint saw. Raises NotBuilt if there is no simulation, or none of this scenario."""
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
