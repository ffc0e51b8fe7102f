"""The limit of an endpoint, and how a next one is made of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from worker.policy.flow import Flow

CAREFUL = 1.2  # the usual step up
MOST_ALLOWED = "the most allowed"  # the reason of a limit that nothing but what is allowed keeps from growing
KEPT = 50  # a settled limit is not cut by one refusal among so many answers
SPARE = 3.0  # so many refusals, at most, are saved up


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
    calls: float = 0.0  # in flight then, on the average; 0: not known, as many as the limit
    call_noise: float = 1.0
    best_unit_ms: float = 0.0  # the shortest time for an output token; for a call, where there is no usage
    floor: int = 0  # a value that did less work than a higher one; 0: none is known
    tried_ms: int = 0  # when the last higher value was given up; later, if the next one can wait
    factor: float = CAREFUL
    is_warm: bool = False  # the calls of the value before have ended

    def counts_answer(self, epoch: int) -> bool:
        """Whether an answer to a call that was admitted under `epoch` says something about this value."""
        return epoch >= self.steady_epoch

    def counts_refusal(self, epoch: int) -> bool:
        """Whether the refusal of a call that was admitted under `epoch` is news: it is no older than the last cut."""
        return epoch >= self.cut_epoch


def parse_limit(stored: Mapping[str, Any]) -> Limit:
    """A limit from what `asdict` made of it, also by another version: fields that are not known are left out.

    Raises KeyError, TypeError or ValueError if it is of another form.
    """
    known = {one.name: stored[one.name] for one in fields(Limit) if one.name in stored}
    return Limit(**{**known, "phase": Phase(stored["phase"])})


def move(limit: Limit, value: int, phase: Phase, reason: str, now_ms: int, *, is_cut: bool = False) -> Limit:
    """Another value, or another try of the same one. `is_cut`: refusals of calls from before are no news."""
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


def renew(limit: Limit, flow: Flow, now_ms: int, *, is_warm: bool = False) -> Limit:
    """The same value with a new window."""
    return replace(limit, epoch=limit.epoch + 1, since_ms=now_ms, spare=spare(limit, flow), is_warm=is_warm)


def spare(limit: Limit, flow: Flow) -> float:
    """Refusals that this limit may still have without a cut: one for so many answers, less those that it had."""
    return min(SPARE, max(0.0, limit.spare + flow.answers / KEPT - flow.refusals))
