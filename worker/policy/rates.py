"""Rates: how many calls may begin now under a limit of requests or tokens a minute. Whole microseconds. Pure.

The generic cell rate algorithm (ITU-T I.371): a limit has one number, the time at which all that was granted is paid
off. A call costs the time in which the limit earns it back. Calls may be granted while that time is at most a burst
ahead of now. So in any minute at most a minute's limit and one burst begin, which is 1 % of it, or one call.
"""

from __future__ import annotations

MINUTE_US = 60_000_000
BURST_US = MINUTE_US // 100


def cost_us(per_minute: int, units: int = 1) -> int:
    """The time in which a limit earns so many requests or tokens."""
    return -(-MINUTE_US * max(0, units) // per_minute)


def carry_over(paid_us: int, *, now_us: int, before: int | None, per_minute: int) -> int:
    """The new `paid_us` where another limit held `before`. What is still to be paid stays as many calls or tokens.

    Under a lower limit it takes as long as before.
    """
    if before is None or before >= per_minute or paid_us <= now_us:
        return paid_us
    return now_us + (paid_us - now_us) * before // per_minute


def take(paid_us: int, *, now_us: int, cost_us: int, wanted: int, credit_us: int = 0) -> tuple[int, int, int]:
    """How many of the `wanted` calls may begin now, the new `paid_us`, and how long until one more may.

    `credit_us`: what was given back just now, by `settle`. All of it may be used now, and nothing of it later.
    """
    start_us, burst_us = max(paid_us, now_us - credit_us), max(cost_us, BURST_US)
    granted = max(0, min(wanted, (now_us + burst_us - start_us) // max(1, cost_us)))
    paid_us = max(now_us, start_us + granted * cost_us)
    return granted, paid_us, max(0, paid_us + cost_us - burst_us - now_us)


def settle(paid_us: int, *, now_us: int, per_minute: int, back: int, each_us: int = 0) -> int:
    """The new `paid_us` once so many units that were reserved were not used; below 0: used beyond what was reserved.

    It is before now where more is given back than is still to be paid. Never more than a minute ahead of now, or a
    call, which takes `each_us`: a clock that was set does not block for long.
    """
    start_us = max(paid_us, now_us)
    changed = start_us - cost_us(per_minute, back) if back >= 0 else start_us + cost_us(per_minute, -back)
    return min(changed, now_us + max(MINUTE_US, each_us))
