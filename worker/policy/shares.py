"""Shares: each worker has a part of the limit, by its demand. Integers only, as in the Lua script. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def share_out(limit: int, demands: Sequence[int], *, turn: int = 0) -> list[int]:
    """The share of each worker, in their order. No share is above its demand, and the sum is at most `limit`.

    Water-filling: who wants less than an equal part has it whole, and the others share what is left equally. What does
    not divide goes to the workers from `turn` on, one each: a turn that rises hands it round, so that each worker has
    its time where there are more workers than calls. A demand below 0 counts as 0.
    """
    wants = [max(0, demand) for demand in demands]
    shares = [0] * len(wants)
    left = max(0, limit)
    hungry = [index for index, want in enumerate(wants) if want]
    while hungry and left >= len(hungry):
        part = left // len(hungry)
        for index in hungry:
            given = min(part, wants[index] - shares[index])
            shares[index] += given
            left -= given
        hungry = [index for index in hungry if shares[index] < wants[index]]
    first = turn % len(hungry) if hungry else 0
    for index in (hungry[first:] + hungry[:first])[:left]:
        shares[index] += 1
    return shares


def grant(fair: int, limit: int, held_by_others: int) -> int:
    """The share that a worker may have now, within [0, fair].

    `held_by_others`: the sum of what each other worker holds, which is its share or its calls in flight, whichever is
    more. So the sum is never above the limit while another worker's share becomes smaller.
    """
    return max(0, min(fair, limit - held_by_others))
