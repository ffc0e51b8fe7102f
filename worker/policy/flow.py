"""What all workers saw of an endpoint under one limit, as sums that can be added, and what the sums say. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

SHORTEST_MS = 0.1


@dataclass(frozen=True, slots=True)
class Flow:
    """Sums over one epoch. Those of several workers, or of several reports, are added.

    `answers`, `tokens` (prompt and completion), `tokens_out` (completion) and `call_ms` (durations) are of answered
    calls that `Limit.counts_answer`. `out_out`, `out_ms` and `ms_ms` are sums of products over the same calls; they
    tell how the duration follows the length. `refusals` are of calls that `Limit.counts_refusal`.
    `full_ms`: for each worker its share, or its calls in flight if a share that became smaller is less, times how long
    its demand (calls in flight, and claimed jobs that wait for a slot) was at least its share. So it is the limit times
    the elapsed time where the limit was always reached.
    `ended`: all calls that were answered in this time, also those of earlier values. `open_ms`: calls in flight, times
    how long they were so many: a part of the limit may not be for the jobs that are there.
    """

    answers: int = 0
    tokens: int = 0
    tokens_out: int = 0
    call_ms: int = 0
    out_out: int = 0
    out_ms: int = 0
    ms_ms: int = 0
    refusals: int = 0
    full_ms: int = 0
    ended: int = 0
    open_ms: int = 0

    def __add__(self, other: Flow) -> Flow:
        return Flow(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Flow)))


NOTHING = Flow()


@dataclass(frozen=True, slots=True)
class CallTime:
    """How long a call with `length` output tokens takes. `noise`: the standard error as a part of it (0.05: 5 %)."""

    ms: float
    noise: float
    length: float

    @property
    def unit_ms(self) -> float:
        """How long an output token takes; a call, where there is no usage."""
        return self.ms / (self.length or 1.0)


def one_answer(*, call_ms: int, tokens: int, tokens_out: int, is_counted: bool = True) -> Flow:
    """The flow of one answered call. The tokens are 0 where the endpoint tells no usage.

    `is_counted`: whether `Limit.counts_answer` of the call's epoch; otherwise it has only ended.
    """
    if not is_counted:
        return Flow(ended=1)
    return Flow(
        answers=1,
        tokens=tokens,
        tokens_out=tokens_out,
        call_ms=call_ms,
        out_out=tokens_out * tokens_out,
        out_ms=tokens_out * call_ms,
        ms_ms=call_ms * call_ms,
        ended=1,
    )


def call_time(flow: Flow, *, length: float | None = None) -> CallTime:
    """How long a call of this length takes; of the average length where it is None. There is at least one answer.

    The calls that end first are the short ones, and within any time some lengths are there by chance. So durations are
    compared for one and the same length, by the straight line through durations over lengths (least squares). Calls in
    flight divided by this is the work done (Little), in calls of that length.
    """
    n = flow.answers
    mean_ms, mean_out = flow.call_ms / n, flow.tokens_out / n
    wanted = mean_out if length is None else length
    spread = flow.out_out - n * mean_out * mean_out
    together = flow.out_ms - n * mean_out * mean_ms
    squares = max(0.0, flow.ms_ms - n * mean_ms * mean_ms)
    slope = 0.0
    if n >= 4 and spread > 1e-6 * flow.out_out and together > 0:
        slope = together / spread
        squares = max(0.0, squares - slope * together)
    ms = max(SHORTEST_MS, mean_ms / 4, mean_ms + slope * (wanted - mean_out))
    if n < 4:
        return CallTime(ms, 1.0, wanted)
    far = (wanted - mean_out) ** 2 / spread if slope else 0.0
    return CallTime(ms, min(1.0, math.sqrt(squares / (n - 2) * (1 / n + far)) / ms), wanted)
