"""What all workers saw of an endpoint under one limit, as sums that can be added, and what the sums say. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Flow:
    """Sums over one epoch. Those of several workers, or of several reports, are added.

    `answers`, `tokens` (prompt and completion), `tokens_out` (completion) and `call_ms` (durations) are of answered
    calls that `Limit.counts_answer`. The three products are sums over the same calls; they tell how much the calls
    differ. `refusals` are of calls that `Limit.counts_refusal`.
    `full_ms`: for each worker its share, times how long its demand (calls in flight, and claimed jobs that wait for a
    slot) was at least its share. So it is the limit times the elapsed time where the limit was always reached.
    """

    answers: int = 0
    tokens: int = 0
    tokens_out: int = 0
    call_ms: int = 0
    tokens_tokens: int = 0
    tokens_ms: int = 0
    ms_ms: int = 0
    refusals: int = 0
    full_ms: int = 0

    def __add__(self, other: Flow) -> Flow:
        return Flow(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Flow)))


NOTHING = Flow()


def one_answer(*, call_ms: int, tokens: int, tokens_out: int) -> Flow:
    """The flow of one answered call. `tokens` is 0 where the endpoint tells no usage."""
    return Flow(
        answers=1,
        tokens=tokens,
        tokens_out=tokens_out,
        call_ms=call_ms,
        tokens_tokens=tokens * tokens,
        tokens_ms=tokens * call_ms,
        ms_ms=call_ms * call_ms,
    )


def round_ms(flow: Flow) -> float | None:
    """How long a call takes, on the average of those that were answered."""
    return flow.call_ms / flow.answers if flow.answers else None


def speed(flow: Flow) -> float | None:
    """Work done by one call in flight, per second: tokens, or answers where there is no usage.

    Calls in flight times this is the goodput (Little). Long and short answers have nearly the same speed, so a few
    calls tell it; the work that happens to end within a window of time varies much more.
    """
    if not flow.answers or not flow.call_ms:
        return None
    return 1000.0 * (flow.tokens or flow.answers) / flow.call_ms


def noise(flow: Flow) -> float:
    """The standard error of `speed`, as a part of it: 0.05 is 5 %. 1 where nothing is known.

    It is that of a ratio of two sums: the squares of what each call did more or less than the average speed explains.
    """
    n = flow.answers
    if n < 2 or not flow.call_ms:
        return 1.0
    work, works, work_ms = float(flow.tokens), float(flow.tokens_tokens), float(flow.tokens_ms)
    if not flow.tokens:
        work, works, work_ms = float(n), float(n), float(flow.call_ms)
    ratio = work / flow.call_ms
    squares = works - 2.0 * ratio * work_ms + ratio * ratio * flow.ms_ms
    return min(1.0, math.sqrt(max(0.0, squares) * n / (n - 1)) / work)


def token_ms(flow: Flow) -> float | None:
    """How long an output token takes. A guard only: it grows with the limit long before more calls stop to pay."""
    return flow.call_ms / flow.tokens_out if flow.tokens_out else None
