"""One scenario of the adaptive limit: a simulation that gives figures, and what they must be."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.modelled_endpoints import Endpoint, Time
from tests.support.simulated_workers import World

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


def scenario(
    name: str, about: str, *, at_least: Figures | None = None, at_most: Figures | None = None
) -> Callable[[Callable[[int], Figures]], Callable[[int], Figures]]:
    """Adds the decorated function to `SCENARIOS`."""

    def add(run: Callable[[int], Figures]) -> Callable[[int], Figures]:
        SCENARIOS[name] = Scenario(about, run, at_least or {}, at_most or {})
        return run

    return add


def make_world(make: Callable[[Time], Endpoint], seed: int, *, workers: int = 2, **options: object) -> World:
    """Workers that are about to call the endpoint that `make` makes. `options` are fields of World."""
    time = Time()
    world = World(time, make(time), random.Random(seed), **options)  # type: ignore[arg-type]
    for _ in range(workers):
        world.join()
    return world


def average_limit(world: World, from_s: float, until_s: float) -> float:
    """The limit of this time, on the average."""
    return sum(span_s * value for span_s, value in world.values(from_s, until_s)) / (until_s - from_s)
