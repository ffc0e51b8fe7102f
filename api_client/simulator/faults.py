"""Draws at random which calls fail, and how."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from random import Random

from api_client.simulator.config import FAULTS, MIXED_FAULTS, SimulatorConfig


class FaultDraw:
    """Draws one fault, or none, for each call. The same seed and rates give the same faults in the same order."""

    def __init__(self, config: SimulatorConfig, random: Random) -> None:
        self._random = random
        self.configure(config)

    def configure(self, config: SimulatorConfig) -> None:
        """Uses the rates of `config` from the next call on. The random numbers go on where they were."""
        share = config.fault_rate / len(MIXED_FAULTS)
        rates = [getattr(config, name) + (share if name in MIXED_FAULTS else 0.0) for name in FAULTS]
        self._kinds = [
            name.removeprefix("rate_") for name, rate in zip(FAULTS, rates, strict=True) if rate > 0
        ]
        self._bounds = list(accumulate(rate for rate in rates if rate > 0))
        if self._bounds and self._bounds[-1] > 1.0 - 1e-9:
            self._bounds[-1] = 1.0  # rates that add up to 1 cover all calls, despite rounding

    def draw(self) -> str | None:
        """The fault of the next call, or None: the name of its rate without `rate_`, such as `429` for `rate_429`."""
        drawn = bisect_right(self._bounds, self._random.random())
        return self._kinds[drawn] if drawn < len(self._kinds) else None
