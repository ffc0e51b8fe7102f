"""The adaptive limit against modelled endpoints: hours of it in seconds. What must hold is in `limit_scenarios`."""

from __future__ import annotations

import pytest

from tests.support.limit_scenarios import SCENARIOS


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_limit_does_what_it_must(name: str, seed: int) -> None:
    scenario = SCENARIOS[name]
    assert scenario.misses(scenario.play(seed)) == [], scenario.about


def test_the_same_seed_gives_the_same_figures() -> None:
    assert SCENARIOS["unknown"].play(3) == SCENARIOS["unknown"].play(3) != SCENARIOS["unknown"].play(4)
