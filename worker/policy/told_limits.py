"""Whether a limit that answers tell in their headers is one of a minute. Pure.

`x-ratelimit-limit-requests: 60` does not say of how long: it may be a minute's, an hour's or a day's. Three things do:

- the header's own name (`…-requests-minute`);
- the refill: an endpoint that gives a limit back evenly (OpenAI, Groq) says when all of it is back. If 1 of 60 is
  used, and that takes 1 s, then 60 take a minute;
- the end of the window: where all of it comes back at once, and the next window ends a minute later, twice.

What none of them tells is not known, and nothing is made up for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from schemas.rates import Allowance

ENOUGH = 20  # answers in a row that tell the same limit: models of one endpoint may have limits of their own
_FITTING = 10
_STEPS = 2
_UNFIT = 5  # one answer that tells otherwise outweighs so many
_MINUTE_MS = 60_000
_SHORTEST_MINUTE, _LONGEST_MINUTE = 0.75, 1.33  # resets are rounded
_SHORTEST_RESET_S = 0.005  # shorter ones are rounded too much
_SAME_END_MS = 1_500
_HELD_MS = 10_000
_ABSURD = 1_000_000_000  # a way to say that there is none


@dataclass(frozen=True, slots=True)
class Told:
    """What answers told of one limit of one key, and how often in a row.

    `refills`: how well the refill fits a minute. `ends_ms`: the end of the window, first told at `end_told_ms`, and
    told for `held_ms`. `steps`: how often the next window ended a minute later.
    """

    limit: int
    seen: int = 0
    is_named: bool = False
    refills: int = 0
    ends_ms: int | None = None
    end_told_ms: int = 0
    held_ms: int = 0
    steps: int = 0

    @property
    def per_minute(self) -> int | None:
        """The limit, if it is known to be one of a minute."""
        is_known = self.is_named or self.refills >= _FITTING or self.steps >= _STEPS
        return self.limit if is_known and self.seen >= ENOUGH else None


def note_told(
    known: Told | None, allowance: Allowance, *, named: int | None = None, now_ms: int
) -> Told | None:
    """What is known after one more answer. `named`: the limit of a header that says that it is a minute's.

    An answer that tells no limit, or an absurd one, changes nothing. One that tells another limit begins anew.
    """
    limit = allowance.limit if named is None else named
    if limit is None or not 0 < limit < _ABSURD:
        return known
    told = (
        known if known is not None and (known.limit, known.is_named) == (limit, named is not None) else None
    )
    told = told or Told(limit, is_named=named is not None)
    told = replace(told, seen=min(told.seen + 1, ENOUGH))
    if told.is_named or allowance.remaining is None or allowance.reset_s is None:
        return told
    used = limit - allowance.remaining
    if used < 1 or allowance.reset_s < _SHORTEST_RESET_S:
        return told
    return _note_end(_note_refill(told, used, allowance.reset_s), allowance.reset_s, now_ms)


def _note_refill(told: Told, used: int, reset_s: float) -> Told:
    minutes = reset_s * told.limit / used * 1000 / _MINUTE_MS
    if _SHORTEST_MINUTE <= minutes <= _LONGEST_MINUTE:
        return replace(told, refills=min(told.refills + 1, ENOUGH))
    return replace(told, refills=max(0, told.refills - _UNFIT))


def _note_end(told: Told, reset_s: float, now_ms: int) -> Told:
    ends_ms = now_ms + round(reset_s * 1000)
    if reset_s * 1000 > _MINUTE_MS + _SAME_END_MS:
        return replace(told, ends_ms=None, steps=0)
    if told.ends_ms is None:
        return replace(told, ends_ms=ends_ms, end_told_ms=now_ms, held_ms=0)
    later_ms = ends_ms - told.ends_ms
    if abs(later_ms) < _SAME_END_MS:
        return replace(told, held_ms=now_ms - told.end_told_ms)
    # An end that stays while time goes on: where a limit comes back evenly, it goes on, too.
    is_next = abs(later_ms - _MINUTE_MS) < _SAME_END_MS and told.held_ms >= _HELD_MS
    steps = min(told.steps + 1, _STEPS) if is_next else 0
    return replace(told, ends_ms=ends_ms, end_told_ms=now_ms, held_ms=0, steps=steps)
