"""The draw that decides which calls fail, and how."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from random import Random

from api_client.simulator.config import FAULTS, MIXED_FAULTS, SimulatorConfig


class FaultDraw:
    """Draws one fault, or none, a call. The same seed and rates give the same faults in the same order."""

    def __init__(self, config: SimulatorConfig, random: Random) -> None:
        self._random = random
        self.configure(config)

    def configure(self, config: SimulatorConfig) -> None:
        """Takes the rates of `config` from the next call on; the draw goes on where it was."""
        share = config.fault_rate / len(MIXED_FAULTS)
        rates = [getattr(config, name) + (share if name in MIXED_FAULTS else 0.0) for name in FAULTS]
        self._kinds = [
            name.removeprefix("rate_") for name, rate in zip(FAULTS, rates, strict=True) if rate > 0
        ]
        self._bounds = list(accumulate(rate for rate in rates if rate > 0))
        if self._bounds and self._bounds[-1] > 1.0 - 1e-9:
            self._bounds[-1] = 1.0  # Shares that were meant to be everything are, whatever the rounding.

    def draw(self) -> str | None:
        """The fault of the next call, or None for none: the name of its rate, as `429` of `rate_429`."""
        drawn = bisect_right(self._bounds, self._random.random())
        return self._kinds[drawn] if drawn < len(self._kinds) else None
