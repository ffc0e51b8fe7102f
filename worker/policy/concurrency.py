"""The adaptive limit: how many calls all workers of an endpoint may have in flight together. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from worker.policy.flow import Flow, round_ms

START = 16  # the first limit of an unknown endpoint
FRESH_MS = 3_600_000  # a limit of an earlier run that is not older is used as it is


class Phase(StrEnum):
    """What the limit does now."""

    STARTING = "starting"  # doubles by round trips
    CLIMBING = "climbing"  # a higher limit is tried
    EASING = "easing"  # a lower limit is tried, as it may do the same work
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
    ceiling: int | None = None  # the lowest value that was refused
    ceiling_ms: int = 0
    round_ms: int = 1000  # how long a call takes

    def counts_answer(self, epoch: int) -> bool:
        """Whether an answer to a call that was admitted under `epoch` says something about this value."""
        return epoch >= self.steady_epoch

    def counts_refusal(self, epoch: int) -> bool:
        """Whether the refusal of a call that was admitted under `epoch` is news: it is no older than the last cut."""
        return epoch >= self.cut_epoch


def parse_limit(stored: Mapping[str, Any]) -> Limit:
    """A limit from what `asdict` made of it. Raises TypeError or ValueError if it is of another form."""
    return Limit(**{**stored, "phase": Phase(stored["phase"])})


def start(remembered: Limit | None, *, cap: int, now_ms: int) -> Limit:
    """The limit at the beginning of a run."""
    if remembered is None:
        return Limit(min(START, cap), 1, Phase.STARTING, now_ms, "start")
    return replace(remembered, epoch=remembered.epoch + 1, since_ms=now_ms, value=min(remembered.value, cap))


def step(limit: Limit, flow: Flow, *, cap: int, now_ms: int) -> Limit:
    """The limit after `flow`, which is of the current epoch. The same object: nothing changes yet."""
    took_ms = round_ms(flow)
    if limit.phase is not Phase.STARTING or took_ms is None or flow.answers < limit.value / 2:
        return limit
    if now_ms - limit.since_ms < took_ms or limit.value >= cap:
        return limit
    epoch = limit.epoch + 1
    return replace(
        limit,
        value=min(cap, limit.value * 2),
        epoch=epoch,
        steady_epoch=epoch,
        since_ms=now_ms,
        reason="doubled",
        round_ms=round(took_ms),
    )


def cut(limit: Limit, flow: Flow, *, epoch: int, cap: int, now_ms: int) -> Limit:
    """The limit after a refusal of a call that was admitted under `epoch`.

    `flow`: that of the current epoch; the refusal is counted in it already. The same object where the refusal is no news, or is one among very many answers.
    """
    if not limit.counts_refusal(epoch):
        return limit
    new = limit.epoch + 1
    return replace(
        limit,
        value=max(1, min(cap, limit.value * 3 // 4)),
        epoch=new,
        steady_epoch=new,
        cut_epoch=new,
        since_ms=now_ms,
        phase=Phase.CLIMBING,
        reason="refused",
        ceiling=limit.value,
        ceiling_ms=now_ms,
    )


def reopen(limit: Limit, *, cap: int, now_ms: int) -> Limit:
    """The limit once a gate has opened: a slow start, from half of what is known to work."""
    epoch = limit.epoch + 1
    return replace(
        limit,
        value=max(1, min(cap, START, limit.value)),
        epoch=epoch,
        steady_epoch=epoch,
        since_ms=now_ms,
        phase=Phase.STARTING,
        reason="reopened",
    )


def refused_wait_ms(limit: Limit) -> int:
    """How long a refused job waits when the endpoint does not say: about a round trip. The caller adds jitter."""
    return max(250, min(limit.round_ms, 10_000))
