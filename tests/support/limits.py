"""Limits and flows for tests of single decisions."""

from __future__ import annotations

from dataclasses import replace

from worker.policy.concurrency import Limit, Phase, cut, start, step
from worker.policy.flow import NOTHING, Flow

NOW = 10_000_000
CAP = 256
FIRST = start(None, cap=CAP, now_ms=NOW)
# 40 at once work, and 41 were refused; a call of 100 tokens takes half a second.
SETTLED = Limit(
    40,
    9,
    Phase.HOLDING,
    NOW,
    "below the ceiling",
    steady_epoch=7,
    cut_epoch=7,
    good=40,
    round_ms=500,
    ceiling=41,
    is_ceiling_firm=True,
    measured=40,
    length=100.0,
    call_ms=500.0,
    call_noise=0.004,
    best_unit_ms=5.0,
    floor=20,
    tried_ms=NOW,
)
KNEE = replace(SETTLED, value=24, good=24, measured=24, ceiling=None, is_ceiling_firm=False, floor=16)


def seen(
    answers: int,
    *,
    limit: Limit,
    ms: int = 500,
    seconds: float,
    refusals: int = 0,
    reached: float = 1.0,
    tokens: int = 100,
) -> Flow:
    """So many calls, of about `ms` each, at this limit."""
    half, odd = divmod(answers, 2)
    times = [round(ms * 0.98)] * half + [round(ms * 1.02)] * half + [ms] * odd
    return Flow(
        answers=answers,
        tokens=tokens * answers,
        tokens_out=tokens * answers,
        call_ms=sum(times),
        out_out=tokens * tokens * answers,
        out_ms=tokens * sum(times),
        ms_ms=sum(one * one for one in times),
        refusals=refusals,
        full_ms=round(limit.value * seconds * 1000 * reached),
        ended=answers,
    )


def after(
    limit: Limit, answers: int, *, seconds: float, ms: int = 500, reached: float = 1.0, cap: int = CAP
) -> Limit:
    flow = seen(answers, limit=limit, ms=ms, seconds=seconds, reached=reached)
    return step(limit, flow, cap=cap, now_ms=limit.since_ms + round(seconds * 1000))


def refused(limit: Limit, flow: Flow = NOTHING, *, epoch: int | None = None, cap: int = CAP) -> Limit:
    """The limit after a refusal of a call that was admitted under `epoch`, or under the present one."""
    epoch = limit.epoch if epoch is None else epoch
    return cut(limit, flow + Flow(refusals=1), epoch=epoch, cap=cap, now_ms=limit.since_ms + 100)
