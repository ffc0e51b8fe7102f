"""With which key of an endpoint a call is made, where each key has a limit of its own. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class KeyRoom(NamedTuple):
    """What one key allows this worker: calls at once, and those in flight.

    `is_open`: no gate keeps calls from it. `is_held`: a call was refused just now, and none begins before all workers
    know.
    """

    share: int
    in_flight: int = 0
    is_open: bool = True
    is_held: bool = False


def rank_by_room(rooms: Sequence[KeyRoom], *, turn: int = 0) -> list[int]:
    """The keys that a call may be made with now, by their places: the one of whose limit the least is used comes first.

    Those alike take turns. While the gates of all keys are shut, a call may go to any: it tests one, or is refused.
    """
    count = len(rooms)
    if any(one.is_open for one in rooms):
        found = [at for at, one in enumerate(rooms) if one.is_open and one.in_flight < one.share]
    else:
        found = [at for at, one in enumerate(rooms) if one.in_flight < max(1, one.share)]
    ranked = [
        (one.in_flight / max(1, one.share), (at - turn) % count, at)
        for at in found
        if not (one := rooms[at]).is_held
    ]
    ranked.sort()
    return [at for _, _, at in ranked]


def sum_limits(rooms: Sequence[KeyRoom], *, most: int) -> int:
    """How many calls at once all keys allow together, at most `most`.

    A key has its calls in flight also where its limit is lower now: so they take nothing from the others.
    """
    if not any(one.is_open for one in rooms):
        return min(most, sum(max(1, one.share, one.in_flight) for one in rooms))
    return min(most, sum(max(one.share if one.is_open else 0, one.in_flight) for one in rooms))
