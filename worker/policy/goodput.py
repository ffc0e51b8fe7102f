"""Decides by work done whether the limit grows, stays or is lowered. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from worker.policy.flow import CallTime, Flow, call_time
from worker.policy.limit import CAREFUL, MOST_ALLOWED, Limit, Phase, move, renew, spare

RETRY_MS = 20_000  # after so long at one value a higher one is tried: what doubles is found within a minute
LONGEST_RETRY_MS = 50_000  # where a try costs work, or a refusal of few calls
WINDOW_MS = 5_000  # the least time over which the goodput of a value that stays is measured
GAIN = 0.05  # a higher limit must do so much more work
LOSS = 0.05  # a lower limit may do so much less
BOLD = 1.5  # the step up after one that paid in full
CHANGE = 0.2  # so much more or less work at one value is no noise
SMALL = 1.15  # a step that is smaller than this is not measured: the gain would be lost in the noise
NEAR = 1.06  # a value that is nearer than this to a good one is as good
SLOWEST = 4.0  # no more calls where an output token takes so many times longer than it did
SHARED = (
    0.03  # a busy server or machine slows all calls of a second by so much, more or less: a standard error
)
NOISY = 0.05  # a standard error above it is too much to be sure of such differences
FEW = 6  # of fewer answers nothing is concluded
ROUNDS = 6  # a decision that is still unsure after so many round trips is taken as it is


def decide_by_work(limit: Limit, flow: Flow, *, cap: int, now_ms: int) -> Limit:
    """The limit after at least a round trip in which it was reached, and without refusals. The same: not known yet."""
    return _STEPS[limit.phase](limit, flow, cap, now_ms)


def _start_on(limit: Limit, flow: Flow, cap: int, now_ms: int) -> Limit:
    if limit.value < limit.good:  # on the way back
        return move(limit, min(cap, limit.good, limit.value * 2), Phase.STARTING, "doubled", now_ms)
    if limit.value == limit.good:
        return _hold(_settle(limit, flow, now_ms), flow, "back at what was good", now_ms)
    if limit.measured and limit.value > limit.measured:
        is_noisy = _call_time(limit, flow, now_ms, limit.length).noise > 0.15
        if is_noisy and now_ms - limit.since_ms < ROUNDS * limit.round_ms:
            return limit
        gain = _gain(limit, flow, now_ms)
        if gain < 0.6 * (limit.value / limit.measured - 1):
            # The work grew up to a knee, and not beyond it: that is about where it would have grown to.
            knee = max(limit.measured, round(limit.measured * (1 + gain)))
            floor = limit.measured if gain > 2 * GAIN else 0
            # What was measured was the first round, of which the short calls are known only.
            new = replace(limit, good=knee, floor=floor, measured=0, tried_ms=0 if floor else now_ms)
            return move(new, knee, Phase.HOLDING, "twice the calls did less than twice the work", now_ms)
    return _climb_from(_settle(limit, flow, now_ms), flow, cap, now_ms, factor=2.0)


def _climb_on(limit: Limit, flow: Flow, cap: int, now_ms: int) -> Limit:
    if limit.refused_at:  # a round without refusals, below what was good
        new = replace(limit, ceiling=limit.refused_at, is_ceiling_firm=False, refused_at=0)
        return _climb_from(_settle(new, flow, now_ms), flow, cap, now_ms)
    if limit.value <= limit.good or not limit.measured:
        return _climb_from(_settle(limit, flow, now_ms), flow, cap, now_ms)
    if limit.value < SMALL * limit.measured:
        return _climb_from(replace(limit, good=limit.value), flow, cap, now_ms)
    is_worse = not limit.is_warm and _judge(limit, flow, -LOSS, now_ms) is False
    if not limit.is_warm and not is_worse:
        return renew(limit, flow, now_ms, is_warm=True)
    is_gain = _judge(limit, flow, GAIN, now_ms)
    if is_gain is None:
        return limit
    if not is_gain:
        # Where more calls do less work, a try costs some: the next one is later.
        later_ms = LONGEST_RETRY_MS - RETRY_MS if _gain(limit, flow, now_ms) < -LOSS else 0
        new = replace(limit, tried_ms=now_ms + later_ms, factor=CAREFUL)
        enough = max(limit.floor + 1, _enough(limit, limit.call_ms / (limit.length or 1.0), 1.0))
        is_sure = _gain(limit, flow, now_ms) < GAIN / 2 and limit.call_noise < NOISY / 2
        if is_sure and limit.good == limit.measured and NEAR * enough <= limit.good:
            return move(new, enough, Phase.EASING, "fewer calls may do the same work", now_ms)
        return move(new, limit.good, Phase.HOLDING, "more calls did no more work", now_ms)
    is_sure = _call_time(limit, flow, now_ms).noise < NOISY / 2
    is_full = is_sure and _gain(limit, flow, now_ms) >= 0.8 * (limit.value / limit.measured - 1)
    return _climb_from(_settle(limit, flow, now_ms), flow, cap, now_ms, factor=BOLD if is_full else CAREFUL)


def _hold_on(limit: Limit, flow: Flow, cap: int, now_ms: int) -> Limit:
    elapsed_ms = now_ms - limit.since_ms
    is_noisy = _call_time(limit, flow, now_ms).noise > NOISY and elapsed_ms < 2 * ROUNDS * limit.round_ms
    if (
        flow.answers < FEW
        or is_noisy
        or elapsed_ms < max(WINDOW_MS, (3 if limit.measured else 1.5) * limit.round_ms)
    ):
        return limit
    if limit.measured == limit.value and not -CHANGE < _gain(limit, flow, now_ms) < CHANGE:
        # It changed in the middle of this time: only calls from now on tell what it does now.
        new = replace(limit, measured=0)
        return move(new, limit.value, Phase.HOLDING, "the endpoint has changed", now_ms)
    new = _settle(limit, flow, now_ms)
    unit_ms = _call_time(limit, flow, now_ms).unit_ms
    if limit.value > 1 and new.best_unit_ms and new.best_unit_ms <= 0.8 * unit_ms:
        # As slow as if so many calls did all the work and the others waited for them.
        enough = _enough(new, unit_ms, 1.05)
        lower = max(limit.value // 2, min(enough, limit.value - 1))
        return move(new, lower, Phase.EASING, "fewer calls may do the same work", now_ms)
    is_below_unknown = not limit.floor and limit.tried_ms and limit.ceiling is None and 1 < limit.value < cap
    if is_below_unknown and new.call_noise < NOISY:
        return move(new, limit.value // 2, Phase.EASING, "fewer calls may do the same work", now_ms)
    if now_ms - limit.tried_ms >= _retry_ms(limit):
        return _climb_from(replace(new, is_ceiling_firm=False), flow, cap, now_ms)
    return renew(new, flow, now_ms)


def _retry_ms(limit: Limit) -> float:
    """How long a value stays before a higher one is tried. At a ceiling it costs a refusal: one in a hundred calls."""
    hundred_ms = 0.0 if limit.ceiling is None else min(LONGEST_RETRY_MS, 100 * limit.round_ms / limit.value)
    return max(RETRY_MS, 4 * limit.round_ms, hundred_ms)


def _ease_on(limit: Limit, flow: Flow, cap: int, now_ms: int) -> Limit:
    if not limit.is_warm:
        if not limit.length and now_ms - limit.since_ms < 2 * limit.call_ms:
            return limit  # where only the count is known, those above the lower value must have ended
        return renew(limit, flow, now_ms, is_warm=True)
    is_enough = _judge(limit, flow, -LOSS, now_ms)
    if is_enough is None:
        return limit
    time = _call_time(limit, flow, now_ms)
    if is_enough:
        new = replace(_settle(limit, flow, now_ms), tried_ms=now_ms)
        if not limit.floor and limit.value > 1:
            return move(new, limit.value // 2, Phase.EASING, "fewer calls do the same work", now_ms)
        return renew(replace(new, phase=Phase.HOLDING, reason="fewer calls do the same work"), flow, now_ms)
    is_news = time.noise < 0.1 and time.unit_ms < 0.9 * limit.best_unit_ms  # so fast was no call before
    unit_ms = limit.call_ms / (limit.length or 1.0)
    # What was fastest may be long ago, or have been other jobs: a third of the way, so that this is not tried for ever.
    best_ms = time.unit_ms if is_news else limit.best_unit_ms ** (2 / 3) * unit_ms ** (1 / 3)
    new = replace(limit, best_unit_ms=best_ms, floor=limit.value)
    # In a straight line from this value, the work of the higher one would be done by so many.
    enough = math.ceil(1.05 * limit.value / (1 + _gain(limit, flow, now_ms)))
    if limit.value < enough and NEAR * enough <= limit.measured:
        return move(new, enough, Phase.EASING, "fewer calls may do the same work", now_ms)
    return move(new, limit.measured, Phase.HOLDING, "fewer calls did less work", now_ms)


_STEPS = {
    Phase.STARTING: _start_on,
    Phase.CLIMBING: _climb_on,
    Phase.HOLDING: _hold_on,
    Phase.EASING: _ease_on,
}


def _enough(limit: Limit, unit_ms: float, margin: float) -> int:
    """So many calls may do the work of the good value, where an output token takes `unit_ms`: the others wait."""
    return math.ceil(margin * limit.good * min(1.0, (limit.best_unit_ms or unit_ms) / unit_ms))


def _settle(limit: Limit, flow: Flow, now_ms: int) -> Limit:
    """The value is good: what it does is what others are compared with."""
    time = _call_time(limit, flow, now_ms)
    ms, error, length = time.ms, time.noise, time.length
    if limit.measured == limit.value and -CHANGE < _gain(limit, flow, now_ms) < CHANGE:
        again = _call_time(limit, flow, now_ms, limit.length)
        length = (limit.length + time.length) / 2
        ms = (limit.call_ms + again.ms) / 2 * _call_time(limit, flow, now_ms, length).ms / again.ms
        error = math.hypot(limit.call_noise, again.noise) / 2
    calls = _calls(limit, flow, now_ms) or (limit.calls if limit.measured == limit.value else 0.0)
    floor = limit.measured if 0 < limit.measured < limit.value else limit.floor
    new = replace(
        limit,
        good=limit.value,
        measured=limit.value,
        floor=floor,
        call_ms=ms,
        calls=calls,
        call_noise=error,
        length=length,
    )
    if limit.ceiling is not None and limit.value >= limit.ceiling:
        new = replace(new, ceiling=None)
    if time.noise > 0.1 or not (time.length or _counts_ended(limit)):
        return new
    return replace(new, best_unit_ms=min(time.unit_ms, limit.best_unit_ms or time.unit_ms))


def _climb_from(limit: Limit, flow: Flow, cap: int, now_ms: int, *, factor: float | None = None) -> Limit:
    """From a good value to the next higher one that is to be tried, or holds if there is none now."""
    factor = limit.factor if factor is None else factor
    if limit.ceiling is not None and limit.value >= limit.ceiling:
        limit = replace(limit, ceiling=None)
    value = max(limit.value + 1, round(limit.value * factor))
    if limit.ceiling is not None:
        gap = limit.ceiling - limit.value
        if gap <= 1 and limit.is_ceiling_firm:
            return _hold(limit, flow, "below the ceiling", now_ms)
        value = min(value, limit.value + max(1, gap // 2))
    value = min(cap, value)
    if value <= limit.value:
        return _hold(limit, flow, MOST_ALLOWED, now_ms)
    if limit.best_unit_ms and _call_time(limit, flow, now_ms).unit_ms > SLOWEST * limit.best_unit_ms:
        return _hold(limit, flow, "each token takes too long", now_ms)
    is_doubling = factor >= 2.0 and value == limit.value * 2
    phase = Phase.STARTING if is_doubling else Phase.CLIMBING
    new = replace(limit, factor=CAREFUL if factor >= 2.0 else factor)
    reason = "doubled" if is_doubling else "a higher limit is tried"
    return replace(move(new, value, phase, reason, now_ms), spare=min(1.0, spare(limit, flow)))


def _hold(limit: Limit, flow: Flow, reason: str, now_ms: int) -> Limit:
    return renew(replace(limit, phase=Phase.HOLDING, reason=reason, tried_ms=now_ms), flow, now_ms)


def _judge(limit: Limit, flow: Flow, least: float, now_ms: int) -> bool | None:
    """Whether the value does `least` more than what was measured before (0.05: 5 %). None: it is not known yet."""
    gain = _gain(limit, flow, now_ms)
    unsure = 3 * math.hypot(_call_time(limit, flow, now_ms, limit.length).noise, limit.call_noise)
    elapsed_ms = now_ms - limit.since_ms
    if flow.answers < FEW:
        return None
    if flow.answers >= limit.value / 2:
        is_time = unsure < 0.15 or elapsed_ms >= 3 * limit.round_ms
        if is_time and gain - unsure >= least:
            return True
        # To give a higher value up too early costs less than to stay there too long.
        if gain + (unsure / 2 if limit.value > limit.measured else unsure) < least:
            return False
    if elapsed_ms < max(ROUNDS * limit.round_ms, WINDOW_MS):
        return None
    return gain >= least + unsure / 6


def _gain(limit: Limit, flow: Flow, now_ms: int) -> float:
    """How much more work this value does than the one that was measured before: 0.05 is 5 % more."""
    calls = _calls(limit, flow, now_ms)
    more = calls / limit.calls if calls and limit.calls else limit.value / limit.measured
    return more / _call_time(limit, flow, now_ms, limit.length).ms * limit.call_ms - 1


def _calls(limit: Limit, flow: Flow, now_ms: int) -> float:
    """How many calls were in flight, where none of those of another value were among them; else 0."""
    is_clean = limit.is_warm or limit.epoch > limit.steady_epoch
    return flow.open_ms / max(1, now_ms - limit.since_ms) if is_clean else 0.0


def _call_time(limit: Limit, flow: Flow, now_ms: int, length: float | None = None) -> CallTime:
    """How long a call takes at this value.

    Where there is no usage, lengths cannot be compared, and calls that began and ended within a short time are the
    short ones. So if calls differ much, all are counted that end in a time, however long ago they began.
    """
    known = call_time(flow, length=length)
    shared = SHARED / math.sqrt(max(1, now_ms - limit.since_ms) / 1000)
    known = replace(known, noise=min(1.0, math.hypot(known.noise, shared)))
    varies = known.noise * math.sqrt(flow.answers)
    if flow.tokens_out or not flow.ended or not _counts_ended(limit) or varies < 0.4:
        return known
    ms = limit.value * (now_ms - limit.since_ms) / flow.ended
    return CallTime(ms, min(1.0, varies / math.sqrt(flow.ended)), 0.0)


def _counts_ended(limit: Limit) -> bool:
    """Whether the calls that end in this time are those of this value, and not of the one before."""
    return limit.is_warm or limit.phase is Phase.HOLDING
