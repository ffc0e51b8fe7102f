"""What the adaptive limit must do with each kind of endpoint.

`python -m tests.support.limit_scenarios [SEEDS [NAME…]]` prints a table.
"""

from __future__ import annotations

import statistics
import sys

# These add their scenarios.
from tests.support import limit_scenarios_changing, limit_scenarios_steady  # noqa: F401
from tests.support.limit_scenario import SCENARIOS, Figures

__all__ = ["SCENARIOS", "play"]


def play(name: str, seed: int) -> Figures:
    """The figures of one scenario."""
    return SCENARIOS[name].play(seed)


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
