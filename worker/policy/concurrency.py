"""The adaptive limit: how many calls all workers of an endpoint may have in flight together. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from worker.policy.flow import CallTime, Flow, call_time

START = 16  # the first limit of an unknown endpoint
FRESH_MS = 3_600_000  # the limit of an earlier run is used as it is, if it is not older
RETRY_MS = 20_000  # after so long at one value a higher one is tried: what doubles is found within a minute
WINDOW_MS = 5_000  # the least time over which the goodput of a value that stays is measured
GAIN = 0.05  # a higher limit must do so much more work
LOSS = 0.05  # a lower limit may do so much less
CAREFUL, BOLD = 1.25, 1.5  # steps up: the larger one after a step that paid in full
SMALL = 1.2  # a step that is smaller than this is not measured: the gain would be lost in the noise
KEPT = 50  # a settled limit is not cut by one refusal among so many answers
SLOWEST = 4.0  # no more calls where an output token takes so many times longer than it did
ROUNDS = 6  # a decision that is still unsure after so many round trips is taken as it is


class Phase(StrEnum):
    """What the limit does now."""

    STARTING = "starting"  # doubles by round trips
    CLIMBING = "climbing"  # a higher limit is tried
    EASING = "easing"  # a lower limit is tried: it may do the same work
    HOLDING = "holding"  # stays, and tries a higher one now and then
    REFUSED = "refused"  # everything is refused: one call at a time, with pauses


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit of an endpoint, and what the next decision needs to know. `parse_limit(asdict(limit))` is the same.

    `epoch` rises with each new `Limit`, also where the value stays: a new flow begins with it, at `since_ms`.
    `steady_epoch`: the first epoch of this value. `cut_epoch`: the first epoch after the last cut.
    No call may begin before `resume_ms`.
    """

    value: int
    epoch: int
    phase: Phase
    since_ms: int
    reason: str
    steady_epoch: int = 0
    cut_epoch: int = 0
    resume_ms: int = 0
    good: int = (
        0  # the value that is gone back to: it was not refused, and a lower one did less work; 0: none yet
    )
    round_ms: int = 1000  # how long a call takes
    # Refusals. `ceiling`: the lowest value that was refused. It is firm if it was reached in a small step.
    ceiling: int | None = None
    is_ceiling_firm: bool = False
    refused_at: int = (
        0  # `good` itself was refused: this is the last value that was, until a round is without refusals
    )
    all_refused_ms: int = 0  # since when everything is refused; 0: not so
    spare: float = 0.0  # refusals that may still happen without a cut
    # Work. At the limit `measured`, a call with `length` output tokens took `call_ms`: the goodput is the one by the
    # other. `call_noise`: the standard error of `call_ms`, as a part of it.
    measured: int = 0
    length: float = 0.0
    call_ms: float = 0.0
    call_noise: float = 1.0
    best_unit_ms: float = 0.0  # the shortest time for an output token; for a call, where there is no usage
    floor: int = 0  # a value that did less work than a higher one; 0: none is known
    tried_ms: int = 0  # when the last higher value was given up
    factor: float = CAREFUL
    is_warm: bool = False  # the calls of the value before have ended

    def counts_answer(self, epoch: int) -> bool:
        """Whether an answer to a call that was admitted under `epoch` says something about this value."""
        return epoch >= self.steady_epoch

    def counts_refusal(self, epoch: int) -> bool:
        """Whether the refusal of a call that was admitted under `epoch` is news: it is no older than the last cut."""
        return epoch >= self.cut_epoch


def parse_limit(stored: Mapping[str, Any]) -> Limit:
    """A limit from what `asdict` made of it. Raises TypeError, KeyError or ValueError if it is of another form."""
    return Limit(**{**stored, "phase": Phase(stored["phase"])})


def start(remembered: Limit | None, *, cap: int, now_ms: int) -> Limit:
    """The limit at the beginning of a run: 16, or what an earlier run found, or half of it if that is long ago."""
    if remembered is None:
        return Limit(min(START, cap), 1, Phase.STARTING, now_ms, "start", steady_epoch=1, cut_epoch=1)
    good = min(cap, remembered.good or min(remembered.value, START))
    epoch = remembered.epoch + 1
    if now_ms - remembered.since_ms > FRESH_MS:
        value = min(good, max(START, good // 2))
        return Limit(value, epoch, Phase.STARTING, now_ms, "start: part of an old limit", epoch, epoch)
    return Limit(
        good,
        epoch,
        Phase.HOLDING if remembered.good else Phase.STARTING,
        now_ms,
        "start: the limit of the last run",
        epoch,
        epoch,
        good=min(good, remembered.good),
        round_ms=remembered.round_ms,
        ceiling=remembered.ceiling,
        is_ceiling_firm=remembered.is_ceiling_firm,
        best_unit_ms=remembered.best_unit_ms,
        floor=remembered.floor,
        tried_ms=now_ms,
    )


def step(limit: Limit, flow: Flow, *, cap: int, now_ms: int) -> Limit:
    """The limit after `flow`, which is of the current epoch. The same object: nothing changes yet."""
    if limit.value > cap:
        return _move(replace(limit, good=min(limit.good, cap)), cap, limit.phase, "the most allowed", now_ms)
    if flow.refusals:
        after = cut(limit, flow, epoch=limit.epoch, cap=cap, now_ms=now_ms)
        if after is not limit:
            return after
    if limit.phase is Phase.REFUSED:
        return _recover(limit, cap, now_ms) if flow.answers else limit
    elapsed_ms = now_ms - limit.since_ms
    if not flow.answers or flow.answers < limit.value / 2 or elapsed_ms < flow.call_ms / flow.answers:
        return limit
    took_ms = flow.call_ms / flow.answers
    if (
        flow.full_ms < 0.5 * limit.value * elapsed_ms
    ):  # the limit was not reached: it says nothing, and must not grow
        is_over = elapsed_ms >= max(WINDOW_MS, 3 * took_ms)
        return _renew(limit, flow, now_ms, is_warm=limit.is_warm) if is_over else limit
    known = replace(limit, round_ms=round(took_ms))
    after = _STEPS[limit.phase](known, flow, cap, now_ms)
    return limit if after is known else after


def cut(limit: Limit, flow: Flow, *, epoch: int, cap: int, now_ms: int) -> Limit:
    """The limit after a refusal of a call that was admitted under `epoch`.

    `flow`: that of the current epoch, with this refusal. The same object: the refusal is no news, or it is one among
    very many answers at a limit that is known to be good.
    """
    if not limit.counts_refusal(epoch):
        return limit
    earned = flow.answers / KEPT if limit.value <= limit.good else 0.0
    if flow.refusals <= limit.spare + earned:
        return limit
    if limit.value <= 1:
        return _pause(limit, now_ms)
    lower = min(cap, limit.value * 3 // 4)
    if limit.value <= limit.good:  # what was good is refused now
        new = replace(limit, refused_at=limit.value)
        return _move(new, lower, Phase.CLIMBING, "refused", now_ms, is_cut=True)
    is_firm = limit.value <= limit.good + max(1, limit.good // 20)
    new = replace(limit, ceiling=limit.value, is_ceiling_firm=is_firm)
    if limit.good >= lower:
        new = replace(new, tried_ms=now_ms)
        phase = Phase.HOLDING if is_firm else Phase.CLIMBING
        return _move(new, limit.good, phase, "refused: back to what was good", now_ms, is_cut=True)
    return _move(new, lower, Phase.CLIMBING, "refused", now_ms, is_cut=True)


def reopen(limit: Limit, *, cap: int, now_ms: int) -> Limit:
    """The limit once a gate has opened: a slow start, from half of what was good."""
    value = max(1, limit.good // 2) if limit.good else min(START, limit.value)
    new = replace(limit, all_refused_ms=0, refused_at=0)
    return _move(new, min(cap, value), Phase.STARTING, "the gate has opened", now_ms, is_cut=True)


def refused_wait_ms(limit: Limit) -> int:
    """How long a refused job waits when the endpoint does not say: about a round trip. The caller adds jitter."""
    return max(250, min(limit.round_ms, 10_000), limit.resume_ms - limit.since_ms)


def _start_on(limit: Limit, flow: Flow, cap: int, now_ms: int) -> Limit:
    if limit.value < limit.good:  # on the way back
        return _move(limit, min(cap, limit.good, limit.value * 2), Phase.STARTING, "doubled", now_ms)
    if limit.value == limit.good:
        return _hold(_settle(limit, flow, now_ms), flow, "back at what was good", now_ms)
    if limit.measured and limit.value > limit.measured:
        if (
            _call_time(limit, flow, now_ms, limit.length).noise > 0.15
            and now_ms - limit.since_ms < ROUNDS * limit.round_ms
        ):
            return limit
        gain = _gain(limit, flow, now_ms)
        if gain < 0.6 * (limit.value / limit.measured - 1):
            # The work grew up to a knee, and not beyond it: that is about where it would have grown to.
            knee = max(limit.measured, round(limit.measured * (1 + gain)))
            floor = limit.measured if gain > 2 * GAIN else 0
            # What was measured was the first round, of which the short calls are known only.
            new = replace(limit, good=knee, floor=floor, measured=0, tried_ms=0 if floor else now_ms)
            return _move(new, knee, Phase.HOLDING, "twice the calls did less than twice the work", now_ms)
    return _climb_from(_settle(limit, flow, now_ms), flow, cap, now_ms, factor=2.0)


def _climb_on(limit: Limit, flow: Flow, cap: int, now_ms: int) -> Limit:
    if limit.refused_at:  # a round without refusals, below what was good
        new = replace(
            limit, ceiling=limit.refused_at, is_ceiling_firm=False, refused_at=0, measured=0, good=limit.value
        )
        return _climb_from(_settle(new, flow, now_ms), flow, cap, now_ms)
    if limit.value <= limit.good or not limit.measured:
        return _climb_from(_settle(limit, flow, now_ms), flow, cap, now_ms)
    if limit.value < SMALL * limit.measured:
        return _climb_from(replace(limit, good=limit.value), flow, cap, now_ms)
    if not limit.is_warm:
        return _renew(limit, flow, now_ms, is_warm=True)
    is_gain = _judge(limit, flow, GAIN, now_ms)
    if is_gain is None:
        return limit
    if not is_gain:
        new = replace(limit, tried_ms=now_ms, factor=CAREFUL)
        return _move(new, limit.good, Phase.HOLDING, "more calls did no more work", now_ms)
    is_full = _gain(limit, flow, now_ms) >= 0.8 * (limit.value / limit.measured - 1)
    return _climb_from(_settle(limit, flow, now_ms), flow, cap, now_ms, factor=BOLD if is_full else CAREFUL)


def _hold_on(limit: Limit, flow: Flow, cap: int, now_ms: int) -> Limit:
    elapsed_ms = now_ms - limit.since_ms
    is_noisy = _call_time(limit, flow, now_ms).noise > 0.05 and elapsed_ms < 2 * ROUNDS * limit.round_ms
    if is_noisy or elapsed_ms < max(WINDOW_MS, 3 * limit.round_ms):
        return limit
    new = _settle(limit, flow, now_ms)
    unit_ms = _call_time(limit, flow, now_ms).unit_ms
    if limit.value > 1 and new.best_unit_ms and new.best_unit_ms <= 0.8 * unit_ms:
        # As slow as if so many calls did all the work and the others waited for them.
        enough = math.ceil(1.05 * limit.value * new.best_unit_ms / unit_ms)
        lower = max(limit.value // 2, min(enough, limit.value - 1))
        return _move(new, lower, Phase.EASING, "fewer calls may do the same work", now_ms)
    if not limit.floor and limit.tried_ms and limit.ceiling is None and limit.value > 1:
        return _move(new, limit.value // 2, Phase.EASING, "fewer calls may do the same work", now_ms)
    if now_ms - limit.tried_ms >= max(RETRY_MS, 4 * limit.round_ms):
        return _climb_from(replace(new, is_ceiling_firm=False), flow, cap, now_ms)
    return _renew(new, flow, now_ms)


def _ease_on(limit: Limit, flow: Flow, cap: int, now_ms: int) -> Limit:
    if not limit.is_warm:
        return _renew(limit, flow, now_ms, is_warm=True)
    is_enough = _judge(limit, flow, -LOSS, now_ms)
    if is_enough is None:
        return limit
    time = _call_time(limit, flow, now_ms)
    is_news = time.noise < 0.1 and time.unit_ms < 0.9 * limit.best_unit_ms  # so fast was no call before
    if is_enough:
        new = replace(_settle(limit, flow, now_ms), tried_ms=now_ms)
        if not limit.floor and limit.value > 1:
            return _move(new, limit.value // 2, Phase.EASING, "fewer calls do the same work", now_ms)
        return _renew(replace(new, phase=Phase.HOLDING, reason="fewer calls do the same work"), flow, now_ms)
    unit_ms = limit.call_ms / (limit.length or 1.0)
    # What was fastest may be long ago, or have been other jobs: a third of the way, so that this is not tried for ever.
    best_ms = time.unit_ms if is_news else limit.best_unit_ms ** (2 / 3) * unit_ms ** (1 / 3)
    new = replace(limit, best_unit_ms=best_ms, floor=limit.value)
    return _move(new, limit.measured, Phase.HOLDING, "fewer calls did less work", now_ms)


_STEPS = {
    Phase.STARTING: _start_on,
    Phase.CLIMBING: _climb_on,
    Phase.HOLDING: _hold_on,
    Phase.EASING: _ease_on,
}


def _settle(limit: Limit, flow: Flow, now_ms: int) -> Limit:
    """The value is good: what it does is what others are compared with."""
    time = _call_time(limit, flow, now_ms)
    ms, error, length = time.ms, time.noise, time.length
    if limit.measured == limit.value:
        again = _call_time(limit, flow, now_ms, limit.length)
        if abs(again.ms / limit.call_ms - 1) < 0.25:  # no change: the average says more
            length = 0.7 * limit.length + 0.3 * time.length
            ms = (
                (0.7 * limit.call_ms + 0.3 * again.ms) * _call_time(limit, flow, now_ms, length).ms / again.ms
            )
            error = math.hypot(0.7 * limit.call_noise, 0.3 * again.noise)
    floor = limit.measured if 0 < limit.measured < limit.value else limit.floor
    new = replace(
        limit,
        good=limit.value,
        measured=limit.value,
        floor=floor,
        call_ms=ms,
        call_noise=error,
        length=length,
    )
    if limit.ceiling is not None and limit.value >= limit.ceiling:
        new = replace(new, ceiling=None)
    if time.noise > 0.1:
        return new
    return replace(new, best_unit_ms=min(time.unit_ms, limit.best_unit_ms or time.unit_ms))


def _climb_from(limit: Limit, flow: Flow, cap: int, now_ms: int, *, factor: float | None = None) -> Limit:
    """From a good value to the next higher one that is to be tried, or holds if there is none now."""
    factor = limit.factor if factor is None else factor
    if limit.ceiling is not None and limit.value >= limit.ceiling:
        limit = replace(limit, ceiling=None)
    value = min(cap, max(limit.value + 1, round(limit.value * factor)))
    if limit.ceiling is not None and value >= limit.ceiling:
        gap = limit.ceiling - limit.value
        value = limit.value + max(1, gap // 4)
        if gap <= 1 and limit.is_ceiling_firm:
            return _hold(limit, flow, "below the ceiling", now_ms)
    if value <= limit.value:
        return _hold(limit, flow, "the most allowed", now_ms)
    if limit.best_unit_ms and _call_time(limit, flow, now_ms).unit_ms > SLOWEST * limit.best_unit_ms:
        return _hold(limit, flow, "each token takes too long", now_ms)
    is_doubling = factor >= 2.0 and value == limit.value * 2
    phase = Phase.STARTING if is_doubling else Phase.CLIMBING
    new = replace(limit, factor=CAREFUL if factor >= 2.0 else factor)
    reason = "doubled" if is_doubling else "a higher limit is tried"
    return replace(_move(new, value, phase, reason, now_ms), spare=min(1.0, _spare(limit, flow)))


def _hold(limit: Limit, flow: Flow, reason: str, now_ms: int) -> Limit:
    return _renew(replace(limit, phase=Phase.HOLDING, reason=reason, tried_ms=now_ms), flow, now_ms)


def _pause(limit: Limit, now_ms: int) -> Limit:
    """Everything is refused. The pauses become longer with the trouble: an eighth of it, so its end is noticed soon."""
    since_ms = limit.all_refused_ms or now_ms
    pause_ms = min(30_000, max(250, min(limit.round_ms, 2000), (now_ms - since_ms) // 8))
    new = replace(limit, all_refused_ms=since_ms, refused_at=0, resume_ms=now_ms + pause_ms)
    return _move(new, 1, Phase.REFUSED, "everything is refused", now_ms, is_cut=True)


def _recover(limit: Limit, cap: int, now_ms: int) -> Limit:
    new = replace(limit, all_refused_ms=0)
    return _move(new, min(cap, max(2, limit.good // 2)), Phase.STARTING, "answered again", now_ms)


def _judge(limit: Limit, flow: Flow, least: float, now_ms: int) -> bool | None:
    """Whether the value does `least` more than what was measured before (0.05: 5 %). None: it is not known yet."""
    gain = _gain(limit, flow, now_ms)
    unsure = 3 * math.hypot(_call_time(limit, flow, now_ms, limit.length).noise, limit.call_noise)
    elapsed_ms = now_ms - limit.since_ms
    if flow.answers >= max(4, limit.value / 2) and (unsure < 0.15 or elapsed_ms >= 3 * limit.round_ms):
        if gain - unsure >= least:
            return True
        if gain + unsure < least:
            return False
    if elapsed_ms < ROUNDS * limit.round_ms:
        return None
    return gain >= least + unsure / 3


def _gain(limit: Limit, flow: Flow, now_ms: int) -> float:
    """How much more work this value does than the one that was measured before: 0.05 is 5 % more."""
    return limit.value / _call_time(limit, flow, now_ms, limit.length).ms * limit.call_ms / limit.measured - 1


def _call_time(limit: Limit, flow: Flow, now_ms: int, length: float | None = None) -> CallTime:
    """How long a call takes at this value.

    Where there is no usage, lengths cannot be compared, and calls that began and ended within a short time are the
    short ones. So if calls differ much, all are counted that end in a time, however long ago they began.
    """
    known = call_time(flow, length=length)
    varies = known.noise * math.sqrt(flow.answers)
    if (
        flow.tokens_out
        or not flow.ended
        or varies < 0.4
        or not (limit.is_warm or limit.phase is Phase.HOLDING)
    ):
        return known
    ms = limit.value * (now_ms - limit.since_ms) / flow.ended
    return CallTime(ms, min(1.0, varies / math.sqrt(flow.ended)), 0.0)


def _move(limit: Limit, value: int, phase: Phase, reason: str, now_ms: int, *, is_cut: bool = False) -> Limit:
    epoch = limit.epoch + 1
    return replace(
        limit,
        value=value,
        phase=phase,
        reason=reason,
        epoch=epoch,
        since_ms=now_ms,
        steady_epoch=epoch,
        cut_epoch=epoch if is_cut else limit.cut_epoch,
        spare=0.0,
        is_warm=False,
    )


def _renew(limit: Limit, flow: Flow, now_ms: int, *, is_warm: bool = False) -> Limit:
    """The same value with a new window."""
    return replace(limit, epoch=limit.epoch + 1, since_ms=now_ms, spare=_spare(limit, flow), is_warm=is_warm)


def _spare(limit: Limit, flow: Flow) -> float:
    return min(3.0, max(0.0, limit.spare + flow.answers / KEPT - flow.refusals))
