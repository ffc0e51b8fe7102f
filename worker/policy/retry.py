"""Decides what follows a failure: the job waits or fails, the gate shuts or stays open. Pure. See docs/answers.md."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from enum import StrEnum

from schemas.failure import Failure, FailureKind
from schemas.rates import RateHints
from worker.policy.backoff import decide_delay_s

_REFUSALS = frozenset({403, 404, 405})
_SHORTEST_HINTED_S = 0.05
_SHORTEST_ROUND_S = 0.1
_SHARE_OF_REFUSALS = 0.1
_NOT_BY_THE_ENDPOINT = frozenset({FailureKind.INVALID_REQUEST, FailureKind.INTERNAL_ERROR})


class Attribution(StrEnum):
    """To whom a failure is attributed, judged by the answers to other jobs."""

    UNKNOWN = "unknown"  # other jobs' answers say nothing about it
    ENDPOINT = "endpoint"  # the endpoint's: different jobs fail in the same way
    UNDECIDED = "undecided"  # another job's answer will decide soon
    JOB = "job"  # the job's own: other jobs are answered


@dataclass(frozen=True, slots=True)
class RetryRules:
    """The settings of retries. Names that end in `_s` are seconds."""

    max_attempts: int = 6
    bad_response_max_attempts: int = 4
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 120.0
    retry_after_cap_s: float = 3600.0
    gate_patience_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class JobFacts:
    """The facts that a decision needs: the job's attempts and waits, and whether the endpoint ever answered a job."""

    attempts: int  # burnt before this failure
    bad_responses: int  # of these, answers without a completion
    max_attempts: int | None  # the job's own budget; None: that of the rules
    number: int  # the claim's ordinal, 1-based
    blocked_since_ms: int | None  # since when the job waits at a gate
    is_proven: bool  # the endpoint has answered a job before: its address and model names work
    attribution: Attribution = Attribution.UNKNOWN
    undecided: int = 0  # how often the decision on this job's failures was put off
    round_trip_s: float | None = None  # about how long an answered call takes at the moment; None: not known
    refused_for_s: float = 0.0  # for how long calls were refused for their rate, and none was answered


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a failure.

    `not_before_ms`: when the job is due again; None: it fails. `burns`: the attempt counts against the budget.
    `is_blocked`: the job waits at a gate, and the wait counts against its patience. `shuts_gate`: no worker calls the
    endpoint until a probe is answered. `cooldown_s`: the cooldown that the endpoint asked for; None: none.
    """

    not_before_ms: int | None
    burns: bool
    is_blocked: bool = False
    shuts_gate: bool = False
    cooldown_s: float | None = None


def decide(
    failure: Failure, facts: JobFacts, *, now_ms: int, rules: RetryRules, rng: random.Random
) -> Decision:
    """What follows one failure. Time and randomness are arguments."""
    kind = failure.kind
    if failure.is_local:  # this machine lacks a resource: no attempt is burnt, and no gate shuts
        if _is_patience_spent(facts, now_ms, rules):
            return Decision(None, burns=False)
        n = max(1, min(facts.number, 5))
        delay_s = 1.0 + decide_delay_s(n, base_s=rules.backoff_base_s, cap_s=rules.backoff_cap_s, rng=rng)
        return Decision(now_ms + round(delay_s * 1000), burns=False, is_blocked=True)
    is_refusal = kind in (FailureKind.UNAUTHORIZED, FailureKind.QUOTA)  # 401 and 402
    if facts.attribution is Attribution.JOB and (is_refusal or kind is FailureKind.REJECTED):
        return Decision(None, burns=True)
    if facts.attribution is Attribution.UNDECIDED and kind not in _NOT_BY_THE_ENDPOINT:
        return _wait_a_moment(failure, facts, now_ms, rules, rng)
    # An endpoint that cannot be reached burns no attempt: an outage of half an hour must not fail a night's jobs.
    if is_refusal or not failure.was_sent or _is_misconfiguration(failure, facts):
        return _wait_at_gate(failure, facts, now_ms, rules, rng, needs_probe=True)
    if kind is FailureKind.INVALID_REQUEST:
        return Decision(None, burns=False)
    if failure.should_retry is False:
        return Decision(None, burns=True)
    if (
        facts.attribution is Attribution.ENDPOINT
        and kind not in _NOT_BY_THE_ENDPOINT
        and kind is not FailureKind.RATE_LIMITED
    ):
        return _wait_at_gate(failure, facts, now_ms, rules, rng, needs_probe=True)
    if kind is FailureKind.RATE_LIMITED:
        return _wait_at_gate(failure, facts, now_ms, rules, rng, needs_probe=False)
    if kind is FailureKind.REJECTED and not failure.should_retry:
        return Decision(None, burns=True)
    return _retry(failure, facts, now_ms, rules, rng)


def decide_hinted_wait_s(hints: RateHints | None, rules: RetryRules) -> float | None:
    """How long no worker shall call, as the endpoint said that its limit is reached; None: calls may go on.

    Waits below 50 ms are over before a worker could heed them.
    """
    wait_s = None if hints is None else hints.wait_s
    if wait_s is None or math.isnan(wait_s) or wait_s < _SHORTEST_HINTED_S:
        return None
    return min(wait_s, rules.retry_after_cap_s)


def is_local(failure: Failure) -> bool:
    """Whether this machine could not make the call: it had no file descriptor, memory, thread or port left."""
    return failure.is_local


def _is_misconfiguration(failure: Failure, facts: JobFacts) -> bool:
    # A wrong base URL must not fail 200,000 jobs: until a call has succeeded, such refusals count as a wrong setup.
    return failure.kind is FailureKind.REJECTED and failure.http_status in _REFUSALS and not facts.is_proven


def _retry(failure: Failure, facts: JobFacts, now_ms: int, rules: RetryRules, rng: random.Random) -> Decision:
    budget = rules.max_attempts if facts.max_attempts is None else facts.max_attempts
    spent = facts.attempts + 1
    is_bad = failure.kind is FailureKind.BAD_RESPONSE
    if spent >= budget or (is_bad and facts.bad_responses + 1 >= rules.bad_response_max_attempts):
        return Decision(None, burns=True)
    delay_s = decide_delay_s(spent, base_s=rules.backoff_base_s, cap_s=rules.backoff_cap_s, rng=rng)
    asked_s = _asked_s(failure, rules)
    if asked_s is not None:
        delay_s = asked_s + delay_s / 10  # never sooner than asked; the jitter spreads the jobs
    return Decision(now_ms + round(delay_s * 1000), burns=True, cooldown_s=asked_s)


def _wait_a_moment(
    failure: Failure, facts: JobFacts, now_ms: int, rules: RetryRules, rng: random.Random
) -> Decision:
    """Waits, unburnt, for another job's answer that decides: about 1, 2, 4, 8, 8 … s."""
    if _is_patience_spent(facts, now_ms, rules):
        return Decision(None, burns=False)
    delay_s = 2.0 ** min(facts.undecided, 3) * rng.uniform(1.0, 1.25)
    return Decision(
        now_ms + round(delay_s * 1000), burns=False, is_blocked=True, cooldown_s=_asked_s(failure, rules)
    )


def _is_patience_spent(facts: JobFacts, now_ms: int, rules: RetryRules) -> bool:
    since_ms = now_ms if facts.blocked_since_ms is None else facts.blocked_since_ms
    return now_ms - since_ms >= rules.gate_patience_s * 1000


def _wait_at_gate(
    failure: Failure,
    facts: JobFacts,
    now_ms: int,
    rules: RetryRules,
    rng: random.Random,
    *,
    needs_probe: bool,
) -> Decision:
    if _is_patience_spent(facts, now_ms, rules):
        # The job fails, but the refusal still concerns all jobs of the endpoint.
        return Decision(None, burns=False, shuts_gate=needs_probe, cooldown_s=_asked_s(failure, rules))
    asked_s = _asked_s(failure, rules)
    if not needs_probe and not asked_s and facts.round_trip_s is not None:
        delay_s = _next_round_s(facts.round_trip_s, facts.refused_for_s, rules, rng)
    else:
        n = max(1, min(facts.number, 8))
        delay_s = decide_delay_s(n, base_s=rules.backoff_base_s, cap_s=rules.backoff_cap_s, rng=rng)
        if asked_s is not None:
            delay_s = asked_s + delay_s / 10
    return Decision(
        now_ms + round(delay_s * 1000),
        burns=False,
        is_blocked=True,
        shuts_gate=needs_probe,
        cooldown_s=asked_s,
    )


def _next_round_s(round_trip_s: float, refused_for_s: float, rules: RetryRules, rng: random.Random) -> float:
    """When calls that were in flight have ended and there is room again: one round trip later, up to a half more.

    A job that was refused often would else wait out a long backoff beside free slots. While nobody is answered, it is a
    tenth of that time: an endpoint that refuses all day is not asked all day, and its end is noticed soon enough.
    """
    wait_s = max(round_trip_s, refused_for_s * _SHARE_OF_REFUSALS) * rng.uniform(1.0, 1.5)
    return min(max(_SHORTEST_ROUND_S, wait_s), rules.backoff_cap_s)


def _asked_s(failure: Failure, rules: RetryRules) -> float | None:
    if failure.retry_after_s is None or math.isnan(failure.retry_after_s):
        return None
    return min(max(failure.retry_after_s, 0.0), rules.retry_after_cap_s)
