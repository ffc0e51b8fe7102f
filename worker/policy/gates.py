"""A shut gate: how long it stays shut, and when the next probe may begin. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from schemas.failure import FailureKind

PROBE_BASE_S = 1.0
PROBE_CAP_S = 60.0  # after a refused key or a spent quota: a person has to act
OUTAGE_PROBE_CAP_S = 5.0  # in an outage, which ends by itself: the end is noticed within seconds
# While a probe has no answer, the next one may begin after this many seconds; after more, if several have no answer. So
# the end of an outage is noticed even if probes hang, and hanging probes, of up to five minutes, do not fill the slots.
PROBE_EVERY_S = 5.0
MOST_PROBES = 12
SEVERAL = 3  # if this many different jobs are refused in the same way, it is the endpoint's state
_OF_A_KEY = frozenset({FailureKind.UNAUTHORIZED, FailureKind.QUOTA})
_TROUBLE = frozenset(
    {FailureKind.SERVER_ERROR, FailureKind.TIMEOUT, FailureKind.UNREACHABLE, FailureKind.BAD_RESPONSE}
)
_ASKED_FOR_A_LIST = frozenset({FailureKind.SERVER_ERROR, FailureKind.TIMEOUT, FailureKind.UNREACHABLE})


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate that is shut for every worker of an endpoint.

    No call may begin before `until_ms`. After it, a cooldown is over; a gate that `needs_probe` then lets one call at a
    time test whether the refusal still holds. `wait_ms`: the length of the wait when it was written, so that a writer
    whose clock is ahead does not make it longer. `struck_ms`: the time of the last refusal. `since_ms`: that of the
    first one since it was open. `jobs`: the first different jobs that were refused, at most `SEVERAL`. `answered` and
    `failed`: probes since it was last struck; once one was answered, it is half open (`worker/policy/half_open.py`).
    `lets_jobs`: since it was last struck, the endpoint has listed its models, or has no such list: jobs may test it.
    """

    kind: FailureKind
    until_ms: int
    strikes: int
    needs_probe: bool
    wait_ms: int | None = None
    struck_ms: int | None = None
    http_status: int | None = None
    jobs: tuple[str, ...] = ()
    since_ms: int | None = None
    answered: int = 0
    failed: int = 0
    lets_jobs: bool = False

    @property
    def is_of_a_key(self) -> bool:
        """Whether it is shut for a refused key or a spent quota, and not for an outage."""
        return self.kind in _OF_A_KEY

    @property
    def is_outage(self) -> bool:
        """Whether it is shut for an outage. Failures during an outage are not the jobs' own."""
        return self.needs_probe and not self.is_of_a_key

    @property
    def is_trouble(self) -> bool:
        """Whether it is shut for 5xx, timeouts, broken connections or pages, and not for a refusal in words."""
        return self.needs_probe and self.kind in _TROUBLE

    @property
    def waits_for_a_list(self) -> bool:
        """Whether the endpoint is asked for its list of models before a job is called: after 5xx and timeouts."""
        return (
            self.needs_probe and self.kind in _ASKED_FOR_A_LIST and not self.lets_jobs and not self.answered
        )

    @property
    def is_half_open(self) -> bool:
        """Whether a probe was answered, and a few calls go before all do."""
        return self.needs_probe and self.answered > 0


def is_of_a_key(kind: FailureKind) -> bool:
    """Whether a refusal of this kind concerns the key that was sent, and not the endpoint."""
    return kind in _OF_A_KEY


def is_over(gate: Gate, *, now_ms: int) -> bool:
    """Whether it is a cooldown whose time has passed. A gate that needs a probe is never over by itself."""
    return not gate.needs_probe and gate.until_ms <= now_ms


class Admission(StrEnum):
    """What the gate allows a job."""

    OPEN = "open"
    PROBE = "probe"  # may pass as a probe, if one may begin now
    PROBE_OF_OTHERS = "probe_of_others"  # the same, for a job that was not refused itself
    TRIAL = "trial"  # may pass as one of a few, if one more may begin now
    SHUT = "shut"


def decide_admission(gate: Gate | None, *, now_ms: int) -> Admission:
    """What the gate allows at `now_ms`.

    A key that was refused to one or two jobs only is tested with another job after a second, even if the wait is
    longer: the refusal may be those jobs' own, and then the others need not wait.
    """
    if gate is None:
        return Admission.OPEN
    if now_ms >= gate.until_ms:
        if gate.is_half_open:
            return Admission.TRIAL
        return Admission.PROBE if gate.needs_probe else Admission.OPEN
    if (
        gate.needs_probe
        and gate.is_of_a_key
        and 0 < len(gate.jobs) < SEVERAL
        and gate.struck_ms is not None
        and now_ms >= gate.struck_ms + PROBE_BASE_S * 1000
    ):
        return Admission.PROBE_OF_OTHERS
    return Admission.SHUT


def shut_further(
    gate: Gate | None,
    kind: FailureKind,
    *,
    now_ms: int,
    asked_s: float | None,
    is_probe: bool = True,
    job_id: str | None = None,
    http_status: int | None = None,
) -> Gate:
    """The gate after one more refusal. Its wait doubles from 1 s to a cap, and is at least what the endpoint asked for.

    The cap is 60 s for a refused key or quota, and 5 s for an outage. `is_probe` False: the call began before the gate
    was shut; its job is added to the refused ones, and nothing else changes. So it is with a probe of an outage that
    fails beside another one. A gate that is half open stays so until more probes have failed than were answered.
    """
    if gate is not None and gate.needs_probe:
        known = gate if job_id is None else _with_job(gate, job_id)
        is_struck = now_ms < gate.until_ms and (gate.is_trouble or known.jobs == gate.jobs)
        if not is_probe or is_struck:
            return known
        if gate.answered > gate.failed:
            return replace(known, failed=gate.failed + 1)
        gate = known
    strikes = 1 if gate is None or not gate.needs_probe else gate.strikes + 1
    cap_s = PROBE_CAP_S if kind in _OF_A_KEY else OUTAGE_PROBE_CAP_S
    wait_s = max(min(cap_s, PROBE_BASE_S * 2.0 ** min(strikes - 1, 60)), asked_s or 0.0)
    until_ms = now_ms + round(wait_s * 1000)
    if gate is not None and not gate.needs_probe:
        until_ms = max(until_ms, gate.until_ms)  # a cooldown is not cut short
    shut = Gate(
        kind,
        until_ms,
        strikes,
        needs_probe=True,
        wait_ms=until_ms - now_ms,
        struck_ms=now_ms,
        http_status=http_status,
        jobs=gate.jobs if gate is not None and gate.needs_probe else (),
        since_ms=gate.since_ms if gate is not None and gate.needs_probe else now_ms,
    )
    return shut if job_id is None else _with_job(shut, job_id)


def cool_down(gate: Gate | None, kind: FailureKind, *, now_ms: int, asked_s: float) -> Gate:
    """The gate after the endpoint asked for a cooldown of `asked_s`. A longer wait is not cut short."""
    until_ms = now_ms + round(asked_s * 1000)
    if gate is not None and (gate.needs_probe or gate.until_ms >= until_ms):
        return gate
    is_cooling = gate is not None and gate.until_ms > now_ms
    return Gate(
        kind,
        until_ms,
        0,
        needs_probe=False,
        wait_ms=until_ms - now_ms,
        struck_ms=now_ms,
        since_ms=gate.since_ms if gate is not None and is_cooling else now_ms,
    )


def bring_forward(gate: Gate, *, now_ms: int) -> Gate:
    """The gate after the answer to a call from before it shut: the next probe may begin 1 s after the last refusal."""
    earliest_ms = now_ms if gate.struck_ms is None else gate.struck_ms + round(PROBE_BASE_S * 1000)
    if not gate.needs_probe or gate.until_ms <= max(now_ms, earliest_ms):
        return gate
    return replace(gate, until_ms=max(now_ms, earliest_ms))


def put_off(gate: Gate, *, now_ms: int) -> Gate:
    """The gate after a probe whose answer decided nothing: the next probe may begin a second later."""
    until_ms = now_ms + round(PROBE_BASE_S * 1000)
    return replace(gate, until_ms=until_ms, wait_ms=until_ms - now_ms) if gate.until_ms < until_ms else gate


def correct_clock(gate: Gate, *, now_ms: int) -> Gate:
    """A gate that was just fetched, corrected for a writer's clock that is ahead: it waits for `wait_ms` at most."""
    if gate.wait_ms is None or gate.until_ms - now_ms <= gate.wait_ms:
        return gate
    ahead_ms = gate.until_ms - now_ms - gate.wait_ms
    struck_ms = None if gate.struck_ms is None else gate.struck_ms - ahead_ms
    since_ms = None if gate.since_ms is None else gate.since_ms - ahead_ms
    return replace(gate, until_ms=now_ms + gate.wait_ms, struck_ms=struck_ms, since_ms=since_ms)


def next_probe_after_s(live: int) -> float:
    """Seconds from the start of the latest probe to the next one, while `live` probes have not ended."""
    return PROBE_EVERY_S * max(1, live - 2) if live else 0.0


def _with_job(gate: Gate, job_id: str) -> Gate:
    if job_id in gate.jobs or len(gate.jobs) >= SEVERAL:
        return gate
    return replace(gate, jobs=(*gate.jobs, job_id))
