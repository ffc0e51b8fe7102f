"""When a shut gate lets the next probe through. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.failure import FailureKind

PROBE_BASE_S = 1.0
PROBE_CAP_S = 60.0


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate that is shut for every worker of an endpoint.

    Nothing passes before `until_ms`; after it a pause is over, while a gate that `needs_probe` lets one call
    at a time try whether the refusal still holds.
    """

    kind: FailureKind
    until_ms: int
    strikes: int
    needs_probe: bool


class Admission(StrEnum):
    """What a job may do at the gate."""

    OPEN = "open"
    PROBE = "probe"  # may pass if it gets the one probe's place
    SHUT = "shut"


def decide_admission(gate: Gate | None, *, now_ms: int) -> Admission:
    """What the gate says at `now_ms`."""
    if gate is None:
        return Admission.OPEN
    if now_ms < gate.until_ms:
        return Admission.SHUT
    return Admission.PROBE if gate.needs_probe else Admission.OPEN


def shut_further(gate: Gate | None, kind: FailureKind, *, now_ms: int, asked_s: float | None) -> Gate:
    """The gate after one more refusal: it doubles its wait from 1 s to 60 s, or longer when asked to."""
    if gate is not None and gate.needs_probe and now_ms < gate.until_ms:
        return gate  # the calls that were in flight when it shut say nothing new
    strikes = 1 if gate is None or not gate.needs_probe else gate.strikes + 1
    wait_s = max(min(PROBE_CAP_S, PROBE_BASE_S * 2.0 ** (strikes - 1)), asked_s or 0.0)
    until_ms = now_ms + round(wait_s * 1000)
    if gate is not None:
        until_ms = max(until_ms, gate.until_ms)  # a pause that the endpoint asked for is not cut short
    return Gate(kind, until_ms, strikes, needs_probe=True)


def pause(gate: Gate | None, kind: FailureKind, *, now_ms: int, asked_s: float) -> Gate:
    """The gate after the endpoint asked everyone to stay away for `asked_s`."""
    until_ms = now_ms + round(asked_s * 1000)
    if gate is not None and (gate.needs_probe or gate.until_ms >= until_ms):
        return gate
    return Gate(kind, until_ms, 0, needs_probe=False)
