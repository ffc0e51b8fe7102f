"""What follows a failed call, for its job and for all workers.

The evidence says whose failure it is, `worker/policy/retry.py` decides, and the gate shuts if it has to.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from schemas.failure import Failure, FailureKind
from schemas.rates import RateHints
from worker.clock import Clock
from worker.policy.gates import Gate, is_of_a_key
from worker.policy.refusals import lacks_model
from worker.policy.retry import Attribution, Decision, JobFacts, RetryRules, decide, decide_hinted_wait_s
from worker.storage.errors import DatabaseAway, WriterStopped
from worker.storage.gate_waits import has_other_jobs
from worker.storage.outcomes import ClaimedJob
from worker.storage.writer import GroupWriter
from worker.throttle.evidence import Evidence, Verdict
from worker.throttle.gatekeeper import Permit
from worker.throttle.key_gates import KeyGates
from worker.throttle.told import ToldLimits
from worker.throttle.told_marks import ToldMarks

_SOON_MS = 1000
_NEW_TROUBLE = 2.0  # times the longest backoff
_SMOOTHING = 0.1  # so about the last ten answers count


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows for the job. `not_before_ms` None: it fails."""

    not_before_ms: int | None
    burns: bool
    is_blocked: bool


class OtherEndpoints(Protocol):
    """The other endpoints that jobs may go to."""

    def are_open(self, model: str) -> bool:
        """Whether another endpoint serves the model, and is open."""

    def note_lack(self, model: str) -> bool:
        """This endpoint has no such model. Returns whether another one may serve it."""


class Judge:
    """One for each endpoint of a process. Thread-safe."""

    def __init__(
        self,
        gates: KeyGates,
        writer: GroupWriter,
        *,
        rules: RetryRules,
        clock: Clock,
        rng: random.Random,
        is_proven: bool,
        told: ToldLimits | None = None,
        calls_in_flight: Callable[[], int] = lambda: 0,
        marks: ToldMarks | None = None,
    ) -> None:
        """`calls_in_flight`: the calls of this process to the endpoint that have no answer yet."""
        self._calls_in_flight = calls_in_flight
        self._gates = gates
        self._told = told or ToldLimits()
        self._marks = marks or ToldMarks(clock.monotonic_s)
        self._writer = writer
        self._rules = rules
        self._clock = clock
        self._rng = rng
        self._is_proven = is_proven  # the endpoint has answered: a 404 may then be a job's own fault
        self._round_trip_s: float | None = None  # of answered calls, smoothed; a lost update does not matter
        self._refused_since_s: float | None = None  # since the last answer: the first refusal for a rate
        self.others: OtherEndpoints | None = None  # None: there is no other endpoint
        self._refused_s = 0.0  # the latest one
        self._evidence = Evidence()
        self._openings = gates.openings

    def note_success(
        self, job: ClaimedJob, permit: Permit, *, latency_s: float, hints: RateHints | None = None
    ) -> None:
        """The call was answered: a gate that waited for this opens, unless the answer says that a limit is reached."""
        self._is_proven = True
        self._refused_since_s = None
        known_s = self._round_trip_s
        self._round_trip_s = latency_s if known_s is None else known_s + _SMOOTHING * (latency_s - known_s)
        self._gates.succeeded(permit, has_others=lambda: self._has_other_jobs(job.id))
        self._note_openings()
        if permit.is_probe:
            # What failed was the outage's, also while the gate is only half open.
            self._evidence.reopened(self._clock.monotonic_s() - latency_s)
        self._evidence.succeeded(
            job.id,
            job.model,
            began=permit.order,
            number=permit.number,
            now_s=self._clock.monotonic_s(),
        )
        self._heed(hints, permit, job.model)

    def judge(self, job: ClaimedJob, failure: Failure, permit: Permit, *, now_ms: int) -> Judgement:
        """What follows from the failure. The gate is shut, given a cooldown or left alone first, as decided.

        A job that another endpoint serves goes there at once, unburnt, if this one keeps calls away or lacks the model.
        """
        if self.others is not None and lacks_model(failure) and self.others.note_lack(job.model):
            self._gates.decided_nothing(permit)
            return Judgement(now_ms, burns=False, is_blocked=False)
        gate = self._gates.gate_for(failure.kind, permit)
        verdict = self._attribute(job, failure, permit, gate, now_ms)
        facts = self._facts(job, verdict, failure.kind)
        if verdict.attribution is Attribution.JOB:
            self._gates.acquit(job.id)
        decision = decide(failure, facts, now_ms=now_ms, rules=self._rules, rng=self._rng)
        not_before_ms = self._tell_the_gate(job, failure, decision, permit, now_ms)
        if self._goes_elsewhere(job, failure, decision):
            not_before_ms = now_ms
        return Judgement(not_before_ms, decision.burns, decision.is_blocked)

    def judge_alone(self, job: ClaimedJob, failure: Failure, *, now_ms: int) -> Judgement:
        """What follows by the table alone, without other jobs' answers and without the gate."""
        facts = self._facts(job, Verdict(Attribution.UNKNOWN), failure.kind)
        decision = decide(failure, facts, now_ms=now_ms, rules=self._rules, rng=self._rng)
        return Judgement(decision.not_before_ms, decision.burns, decision.is_blocked)

    def _facts(self, job: ClaimedJob, verdict: Verdict, kind: FailureKind) -> JobFacts:
        return JobFacts(
            attempts=job.burnt,
            bad_responses=job.bad_responses,
            max_attempts=job.max_attempts,
            number=job.number,
            blocked_since_ms=job.blocked_since_ms,
            is_proven=self._is_proven,
            attribution=verdict.attribution,
            undecided=verdict.asked,
            round_trip_s=self._round_trip_s,
            refused_for_s=self._note_refusal() if kind is FailureKind.RATE_LIMITED else 0.0,
        )

    def _note_refusal(self) -> float:
        """Seconds for which calls were refused for their rate, and none was answered.

        A refusal after a time in which no job can have waited for the one before is the first of a new trouble.
        """
        now_s, since_s = self._clock.monotonic_s(), self._refused_since_s
        if since_s is None or now_s - self._refused_s > _NEW_TROUBLE * self._rules.backoff_cap_s:
            since_s = self._refused_since_s = now_s
        self._refused_s = now_s
        return now_s - since_s

    def _attribute(
        self, job: ClaimedJob, failure: Failure, permit: Permit, gate: Gate | None, now_ms: int
    ) -> Verdict:
        self._note_openings()
        if failure.kind is FailureKind.UNAUTHORIZED and not failure.was_sent:
            return Verdict(Attribution.UNKNOWN)  # there is no key: no job is at fault
        budget = self._rules.max_attempts if job.max_attempts is None else job.max_attempts
        return self._evidence.judge(
            job.id,
            job.model,
            failure,
            gate=gate,
            is_probe=self._gates.is_probing(permit, gate),
            is_proven=self._is_proven,
            is_last=job.burnt + 1 >= budget,
            is_only=budget == 1,
            has_others=lambda: self._has_other_jobs(job.id),
            was_accepted=lambda: self._gates.was_key_accepted(permit),
            number=permit.number,
            calls=self._gates.calls,
            order=self._gates.next_order(),
            now_s=self._clock.monotonic_s(),
            in_flight=self._calls_in_flight() + 1,
            tries=job.number,
            waited_s=0.0 if job.blocked_since_ms is None else (now_ms - job.blocked_since_ms) / 1000,
        )

    def _tell_the_gate(
        self, job: ClaimedJob, failure: Failure, decision: Decision, permit: Permit, now_ms: int
    ) -> int | None:
        """Shuts the gate or gives it a cooldown, as decided. When the job is due again; None where it fails."""
        if decision.shuts_gate:
            shut = self._gates.shut(
                failure.kind,
                asked_s=decision.cooldown_s,
                permit=permit,
                job_id=job.id,
                http_status=failure.http_status,
            )
            if decision.not_before_ms is None:
                return None  # its patience is spent; the gate stays shut for the others
            # Spread over a second: not all of those that waited come for the next probe at once.
            return self._soonest(shut.until_ms, failure, decision, now_ms) + self._rng.randrange(1000)
        if decision.cooldown_s:
            self._gates.cool_down(failure.kind, asked_s=decision.cooldown_s, permit=permit)
        else:
            self._heed(failure.rate_hints, permit, job.model)
        self._gates.decided_nothing(permit)
        due_ms = decision.not_before_ms
        return None if due_ms is None else self._soonest(due_ms, failure, decision, now_ms)

    def _heed(self, hints: RateHints | None, permit: Permit, model: str) -> None:
        self._told.note(hints, "" if permit.key is None else permit.key.id, now_ms=self._clock.now_ms())
        wait_s = decide_hinted_wait_s(self._marks.note(hints, permit, model), self._rules)
        if wait_s is not None:
            self._gates.keep_off(wait_s, permit)

    def _soonest(self, due_ms: int, failure: Failure, decision: Decision, now_ms: int) -> int:
        """`due_ms`; but within about a second where it is the key that has to wait, and another one may call the job,
        here or in another worker."""
        is_the_keys = is_of_a_key(failure.kind) or (
            failure.kind is FailureKind.RATE_LIMITED and decision.cooldown_s is not None
        )
        if is_the_keys and (self._gates.has_usable_key() or self._gates.do_others_serve()):
            return min(due_ms, now_ms + _SOON_MS)
        return due_ms

    def _goes_elsewhere(self, job: ClaimedJob, failure: Failure, decision: Decision) -> bool:
        """Whether the job need not wait for this endpoint, which keeps calls away."""
        if self.others is None or failure.is_local or decision.burns or self._gates.is_known_open:
            return False
        is_blocked = decision.is_blocked or decision.shuts_gate
        return is_blocked and self.others.are_open(job.model)

    def _has_other_jobs(self, job_id: str) -> bool:
        ask = partial(has_other_jobs, endpoint=self._writer.endpoint, job_id=job_id)
        try:
            return self._writer.call(ask)
        except (DatabaseAway, WriterStopped):
            return True

    def _note_openings(self) -> None:
        if self._openings != self._gates.openings:
            self._openings = self._gates.openings
            self._evidence.reopened(self._clock.monotonic_s())
