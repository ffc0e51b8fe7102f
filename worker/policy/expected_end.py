"""When a batch is likely to end, from the rate at which its endpoint answered lately. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_ENOUGH = 5  # answers tell a rate
_SHORTEST_MS = 1_000


@dataclass(frozen=True, slots=True)
class Flow:
    """Jobs that ended with an answer since `first_ms`, the time of the first of them.

    `idle_since_ms`: the time of the last of them, if no job is in a call now. The time since then tells no rate.
    """

    answers: int
    first_ms: int | None
    idle_since_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """The likely end of a batch, and the rate that it follows from (jobs a second)."""

    end_ms: int
    jobs_per_s: float

    def misses(self, deadline_ms: int | None) -> bool:
        """Whether not all of the batch is likely to be done in time."""
        return deadline_ms is not None and self.end_ms > deadline_ms


def expect_end(
    flow: Flow, *, own: int, others: Iterable[tuple[int, float]], now_ms: int, weight: float = 1.0
) -> Expected | None:
    """The likely end of a batch with `own` open jobs; None while too few answers tell a rate.

    `others`: the number of open jobs and the weight of each other batch of its endpoint. All batches take turns: beside
    one of the same weight come no more jobs than this one has. Jobs of all batches are taken to be alike.
    """
    if flow.first_ms is None or flow.answers < _ENOUGH:
        return None
    until_ms = now_ms if flow.idle_since_ms is None else flow.idle_since_ms
    per_ms = flow.answers / max(_SHORTEST_MS, until_ms - flow.first_ms)
    before = own + sum(min(jobs, own * other / weight) for jobs, other in others)
    return Expected(now_ms + round(before / per_ms), per_ms * 1000)
