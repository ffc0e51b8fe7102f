"""Backoff with full jitter. Pure."""

from __future__ import annotations

import random


def decide_delay_s(n: int, *, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Seconds to wait after `n` failed attempts (1-based), within [0, cap_s].

    Full jitter over an exponential base: a thousand jobs that failed together do not come back together.
    Raises ValueError if n < 1. Source: AWS Architecture Blog, "Exponential Backoff and Jitter".
    """
    if n < 1:
        raise ValueError("n counts the failed attempts and begins at 1")
    ceiling = min(cap_s, base_s * 2.0 ** min(n - 1, 60))
    return rng.uniform(0.0, ceiling)
