"""The adaptive limit: how many calls all workers of an endpoint may have in flight together. Pure."""

from __future__ import annotations

from dataclasses import replace

from worker.policy.flow import Flow
from worker.policy.goodput import WINDOW_MS, decide_by_work
from worker.policy.limit import KEPT, MOST_ALLOWED, Limit, Phase, move, parse_limit, renew

__all__ = [
    "FIRST",
    "FRESH_MS",
    "START",
    "Limit",
    "Phase",
    "allow_more",
    "cut",
    "parse_limit",
    "refused_wait_ms",
    "reopen",
    "start",
    "step",
    "wake",
]

FIRST = "start"  # the reason of the first limit of an unknown endpoint
START = 16  # the first limit of an unknown endpoint
REACHED = 0.8  # the limit was reached for so much of the time: what was measured is what it does
REACHED_AT_START = 0.5  # doubled values are followed within a part of a round trip
SET_BACK_MS = 1000  # a time that is so far ahead is of a clock that was set back since
EDGE_ROUNDS = 5  # a value that is refused so soon was refused a little above just now
UNREFUSED_MS = 1_000  # a call that is not refused for so long is being worked on
FRESH_MS = 3_600_000  # the limit of an earlier run is used as it is, if it is not older


def start(remembered: Limit | None, *, cap: int, now_ms: int) -> Limit:
    """The limit at the beginning of a run: 16, or what an earlier run found, or half of it if that is long ago."""
    if remembered is None:
        return Limit(min(START, cap), 1, Phase.STARTING, now_ms, FIRST, steady_epoch=1, cut_epoch=1)
    good = min(cap, remembered.good or min(remembered.value, START))
    epoch = remembered.epoch + 1
    if now_ms - remembered.since_ms > FRESH_MS:
        value = min(good, max(START, good // 2))
        return Limit(value, epoch, Phase.STARTING, now_ms, "start: part of an old limit", epoch, epoch)
    is_found = remembered.good > 0 and not (remembered.reason == MOST_ALLOWED and remembered.value < cap)
    return Limit(
        good,
        epoch,
        Phase.HOLDING if is_found else Phase.STARTING,
        now_ms,
        "start: the limit of the last run",
        epoch,
        epoch,
        good=min(good, remembered.good) if is_found else 0,
        round_ms=remembered.round_ms,
        ceiling=remembered.ceiling,
        is_ceiling_firm=remembered.is_ceiling_firm,
        best_unit_ms=remembered.best_unit_ms,
        floor=remembered.floor,
        tried_ms=now_ms,
    )


def step(limit: Limit, flow: Flow, *, cap: int, now_ms: int) -> Limit:
    """The limit after `flow`, which is of the current epoch. The same object: nothing changes yet.

    It grows only if it was reached, for at least a round trip, and without refusals.
    """
    if limit.since_ms > now_ms + SET_BACK_MS:
        return _count_from_now(limit, now_ms)
    if limit.value > cap:
        return move(replace(limit, good=min(limit.good, cap)), cap, Phase.HOLDING, MOST_ALLOWED, now_ms)
    if flow.refusals:
        after = cut(limit, flow, epoch=limit.epoch, cap=cap, now_ms=now_ms)
        if after is not limit:
            return after
    if limit.phase is Phase.REFUSED:
        is_taken = flow.answers or min(flow.full_ms, now_ms - limit.resume_ms) >= UNREFUSED_MS
        return _recover(limit, cap, now_ms) if is_taken else limit
    elapsed_ms = now_ms - limit.since_ms
    if limit.all_refused_ms and limit.phase is Phase.STARTING and limit.value < limit.good:
        is_reached = flow.full_ms >= REACHED_AT_START * limit.value * elapsed_ms
        if is_reached and elapsed_ms >= min(UNREFUSED_MS, max(250, limit.round_ms // 2)):
            # Back to what was good. That is known, and needs no answer.
            return move(limit, min(cap, limit.good), Phase.STARTING, "not refused any more", now_ms)
    if not flow.answers or flow.answers < limit.value / 2 or elapsed_ms < flow.call_ms / flow.answers:
        return limit
    took_ms = flow.call_ms / flow.answers
    reached = REACHED_AT_START if limit.phase is Phase.STARTING else REACHED
    if flow.full_ms < reached * limit.value * elapsed_ms:  # it says nothing, and must not grow
        is_over = elapsed_ms >= max(WINDOW_MS, 3 * took_ms)
        return renew(limit, flow, now_ms, is_warm=limit.is_warm) if is_over else limit
    known = replace(limit, round_ms=round(took_ms), all_refused_ms=0)
    after = decide_by_work(known, flow, cap=cap, now_ms=now_ms)
    return limit if after is known else _within(after, cap)


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
    if flow.answers:
        limit = replace(limit, all_refused_ms=0)
    if limit.value <= 1:
        return _pause(limit, now_ms)
    lower = min(cap, limit.value * 3 // 4)
    is_edge = limit.is_ceiling_firm and limit.ceiling == limit.value + 1 and limit.epoch == limit.steady_epoch
    if (
        limit.phase is Phase.HOLDING
        and is_edge
        and limit.value == limit.good
        and now_ms - limit.since_ms < EDGE_ROUNDS * limit.round_ms
    ):
        # What is just above was refused just now: this was too much, too. A small step is enough, but only one.
        edge = limit.value - max(1, limit.value // 20)
        new = replace(limit, good=edge, ceiling=limit.value, tried_ms=now_ms)
        return move(new, edge, Phase.HOLDING, "refused just below the ceiling", now_ms, is_cut=True)
    if limit.value <= limit.good:  # what was good is refused now
        new = replace(limit, refused_at=limit.value)
        return move(new, lower, Phase.CLIMBING, "refused", now_ms, is_cut=True)
    is_firm = limit.value <= limit.good + max(1, limit.good // 20)
    new = replace(limit, ceiling=limit.value, is_ceiling_firm=is_firm)
    if limit.good >= lower:
        new = replace(new, tried_ms=now_ms)
        phase = Phase.HOLDING if is_firm else Phase.CLIMBING
        back = move(new, min(cap, limit.good), phase, "refused: back to what was good", now_ms, is_cut=True)
        return replace(back, spare=1.0)  # the next refusal may be one of those that come at any limit
    return move(new, lower, Phase.CLIMBING, "refused", now_ms, is_cut=True)


def reopen(limit: Limit, *, cap: int, now_ms: int) -> Limit:
    """The limit once a gate has opened: a slow start, from half of what was good, or of what was tried if nothing was.

    A slow server whose calls all time out shuts the gate again and again: so the limit comes down to what it answers.
    """
    value = max(1, (limit.good or min(START, limit.value)) // 2)
    new = replace(limit, all_refused_ms=0, refused_at=0, resume_ms=0)
    return move(new, min(cap, value), Phase.STARTING, "the gate has opened", now_ms, is_cut=True)


def allow_more(limit: Limit, *, before: int, cap: int, now_ms: int) -> Limit:
    """The limit when a person allows more calls than `before`: a slow start. The same: that did not keep it low."""
    is_kept = limit.phase in (Phase.HOLDING, Phase.EASING) and max(limit.value, limit.good) >= before
    if not is_kept or limit.value >= cap:
        return limit
    new = replace(limit, good=0, measured=0, tried_ms=0)
    return move(new, limit.value, Phase.STARTING, "more is allowed", now_ms)


def wake(limit: Limit, flow: Flow, *, now_ms: int) -> Limit:
    """The limit when jobs have come after a time without many: that does not count. The same: it was reached before."""
    was_busy = flow.full_ms or flow.refusals or 2 * flow.ended >= limit.value
    if was_busy or limit.phase in (Phase.HOLDING, Phase.REFUSED):
        return limit
    return renew(limit, flow, now_ms, is_warm=limit.is_warm)


def refused_wait_ms(limit: Limit) -> int:
    """How long a refused job waits when the endpoint does not say: about a round trip. The caller adds jitter."""
    return max(250, min(limit.round_ms, 10_000), limit.resume_ms - limit.since_ms)


def _pause(limit: Limit, now_ms: int) -> Limit:
    """Everything is refused. The pauses become longer with the trouble: a part of it, so its end is noticed soon."""
    since_ms = limit.all_refused_ms or now_ms
    pause_ms = min(30_000, max(250, min(limit.round_ms, 500), (now_ms - since_ms) // 32))
    new = replace(limit, all_refused_ms=since_ms, refused_at=0, resume_ms=now_ms + pause_ms)
    return move(new, 1, Phase.REFUSED, "everything is refused", now_ms, is_cut=True)


def _within(limit: Limit, cap: int) -> Limit:
    return limit if limit.value <= cap else replace(limit, value=cap, good=min(limit.good, cap))


def _recover(limit: Limit, cap: int, now_ms: int) -> Limit:
    return move(limit, min(cap, max(2, limit.good // 2)), Phase.STARTING, "not refused any more", now_ms)


def _count_from_now(limit: Limit, now_ms: int) -> Limit:
    """The same value, of which no time is ahead of the clock: it may be hours until the clock is there again."""
    ahead_ms = limit.since_ms - now_ms
    new = replace(
        limit,
        resume_ms=max(0, limit.resume_ms - ahead_ms),
        tried_ms=limit.tried_ms and max(1, limit.tried_ms - ahead_ms),
        all_refused_ms=limit.all_refused_ms and max(1, limit.all_refused_ms - ahead_ms),
    )
    return move(new, limit.value, limit.phase, limit.reason, now_ms)
