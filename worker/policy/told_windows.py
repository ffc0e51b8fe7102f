"""How many calls may begin under a limit that answers tell: what remains, and until when. Pure.

Of all answers in a window, the one that was counted last tells the least, and it has counted all calls that are
answered. So as many calls may begin as the least that was told, less those in flight, which may not be counted yet.
That is sure in whichever order answers come, and exact when none is in flight.

The end of a window is between a call's start and its answer, plus the reset that it tells. Where these times meet, two
answers are of the same window; else the later one counts. After a reset the limit is there again. So that no burst
follows it, that is assumed until an answer says what is left, and at most for one more window.

Where a limit comes back evenly, as OpenAI's does, more may begin all the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from schemas.rates import Allowance

_SAFE_TENTHS = 9  # of a refill that is told are counted on
_SHORTEST_SPAN_MS = 1_000
_NEAR = 4  # more calls than so many times those that may begin until the workers have heard of it are plenty
_ALIKE = 1.3
_MORE_USED = 1.5
_FITTING = 3


@dataclass(frozen=True, slots=True)
class Window:
    """At most `left` calls until `late_ms`, those in flight among them. `limit`: of a whole window, 0 if unknown.

    The reset is not before `early_ms`, and was `span_ms` away. `each_us`: the time in which one call comes back, from
    `at_ms` on; 0 where all come back at the reset. `is_assumed`: no answer has told of it yet; the window before ended
    at `early_ms` then.
    """

    left: int
    limit: int
    early_ms: int
    late_ms: int
    span_ms: int
    at_ms: int
    each_us: int = 0
    is_assumed: bool = False


def note_window(known: Window | None, told: Window, *, now_ms: int) -> Window | None:
    """The window after an answer told one. What is over, or of a window before, changes nothing."""
    if told.late_ms <= now_ms:
        return known
    if known is None:
        return told
    if known.is_assumed:
        return told if told.early_ms > known.early_ms else known
    if told.early_ms > known.late_ms:
        return told
    if told.late_ms < known.early_ms:
        return known
    return replace(
        told if told.left < known.left else known,
        early_ms=max(known.early_ms, told.early_ms),
        late_ms=min(known.late_ms, told.late_ms),
        span_ms=max(known.span_ms, told.span_ms),
        each_us=told.each_us,
    )


def pass_reset(known: Window | None, *, now_ms: int) -> Window | None:
    """The window that is valid now. None: no bound is known."""
    if known is None or now_ms < known.late_ms:
        return known
    late_ms = known.late_ms + max(known.span_ms, _SHORTEST_SPAN_MS)
    if known.is_assumed or not known.limit or now_ms >= late_ms:
        return None
    return replace(
        known, left=known.limit, early_ms=known.late_ms, late_ms=late_ms, at_ms=now_ms, is_assumed=True
    )


def count_left(windows: Iterable[tuple[Window | None, int]], *, now_ms: int) -> tuple[int, int] | None:
    """How many more calls may begin, and the ms until the reset of the limit that leaves the fewest. None: any.

    Each window comes with the calls in flight that it may not have counted.
    """
    found = None
    for window, uncounted in windows:
        if window is None:
            continue
        back = 0
        if window.each_us:
            back = max(0, now_ms - window.at_ms) * 1000 * _SAFE_TENTHS // 10 // window.each_us
        there = window.left + back
        left = (min(there, window.limit) if window.limit else there) - uncounted
        if found is None or left < found[0]:
            found = left, window.late_ms - now_ms
    return found


def grant_calls(left: int, wanted: int, *, workers: int, may_begin: int) -> int | None:
    """How many calls a worker may begin until it asks again. None: there are plenty, and it need not ask.

    `may_begin`: calls that all workers might begin until they have heard of it.
    """
    if left >= _NEAR * may_begin:
        return None
    return max(0, min(wanted, -(-left // workers)))


@dataclass(frozen=True, slots=True)
class Refill:
    """Whether a limit comes back evenly: all of it within `span_ms`, as answers tell with unlike numbers used."""

    span_ms: float
    used: int
    fits: int = 0

    @property
    def is_even(self) -> bool:
        return self.fits >= _FITTING


def note_refill(known: Refill | None, allowance: Allowance) -> Refill | None:
    """What is known after one more answer.

    Where a limit comes back evenly, the time until all of it is back follows what is used: half of it, half the time.
    At the end of a window it does not: more is used, and less time is left.
    """
    limit, remaining, reset_s = allowance.limit, allowance.remaining, allowance.reset_s
    if limit is None or remaining is None or not reset_s or limit <= remaining:
        return known
    used = limit - remaining
    span_ms = reset_s * 1000 * limit / used
    if known is None:
        return Refill(span_ms, used)
    if not 1 / _ALIKE <= span_ms / known.span_ms <= _ALIKE:
        return Refill(span_ms, used) if known.fits < 2 else replace(known, fits=known.fits - 1)
    if used >= _MORE_USED * known.used or known.used >= _MORE_USED * used:
        return Refill(span_ms, used, min(known.fits + 1, _FITTING))
    return known
