"""How many calls begin in any minute, or in any other time of the same length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def count_in_windows(begun: Sequence[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    """Each time in `begun`, with the calls that begin from it on for `length`. `begun`: times, which rise, and calls."""
    within, end = 0, 0
    for start, calls in begun:
        while end < len(begun) and begun[end][0] < start + length:
            within += begun[end][1]
            end += 1
        yield start, within
        within -= calls
