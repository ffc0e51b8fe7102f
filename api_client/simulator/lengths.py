"""How long answers are: one length, or lengths that differ wildly."""

from __future__ import annotations

import math
from random import Random

_LONGEST_FACTOR = 100


def draw_length(mean: int, spread: float, *, seed: int, text: str) -> int:
    """Tokens of the answer to `text`, at least 1: `mean`, or lognormal with this mean and the sigma `spread`.

    The same text and seed always get the same length: what tries again gets the same work.
    """
    if spread <= 0:
        return mean
    drawn = Random(f"{seed}:{text}").lognormvariate(math.log(mean) - spread * spread / 2, spread)
    return max(1, min(round(drawn), mean * _LONGEST_FACTOR))
