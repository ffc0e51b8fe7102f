"""What an endpoint says is left of its own limits, and what is reserved for a call that is not answered yet. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

SAME_MS = 1_500  # ends that differ by less are of one window: many endpoints tell whole seconds
LONGEST_MS = 3_600_000  # after so long it is asked again, whatever was said


@dataclass(frozen=True, slots=True)
class Window:
    """So many requests, or tokens, are left until `until_ms`; then there are new ones."""

    left: int
    until_ms: int


def note_remaining(
    window: Window | None, *, remaining: int | None, reset_s: float | None, now_ms: int
) -> Window | None:
    """The window after an answer said what remains, and when it resets. None: no bound is known.

    What is not said, or is below 0 or no number, is not known. Answers come in any order, and do not know of the calls
    that began since: within one window the lowest counts.
    """
    known = None if window is None or now_ms >= window.until_ms else window
    if remaining is None or remaining < 0 or reset_s is None or math.isnan(reset_s) or reset_s <= 0:
        return known
    until_ms = now_ms + math.ceil(min(reset_s * 1000, LONGEST_MS))
    if known is not None and until_ms < known.until_ms + SAME_MS:
        return replace(known, left=min(known.left, remaining))
    return Window(remaining, until_ms)


def begin_calls(window: Window | None, *, units: int) -> Window | None:
    """The window after calls began that cost so many requests or tokens."""
    return None if window is None else replace(window, left=max(0, window.left - max(0, units)))


def count_allowed(window: Window | None, *, cost: int = 1, now_ms: int) -> int | None:
    """How many calls may begin until the window resets, if each costs so much. None: no bound is known."""
    if window is None or now_ms >= window.until_ms:
        return None
    return window.left // max(1, cost)


def reserve_tokens(lately: Sequence[int], *, unknown: int) -> int:
    """The tokens to reserve for a call: what 95 of 100 such answers took at most. `unknown` where there were none.

    The nearest rank: of fewer than twenty answers it is the largest.
    """
    if not lately:
        return unknown
    return sorted(lately)[math.ceil(0.95 * len(lately)) - 1]
