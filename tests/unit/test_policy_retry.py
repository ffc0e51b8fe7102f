"""The table "What follows" of docs/answers.md, row by row; and what holds for any failure."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.failure import Failure, FailureKind
from schemas.rates import Allowance, RateHints
from worker.policy.backoff import decide_delay_s
from worker.policy.retry import Decision, JobFacts, RetryRules, decide, decide_hinted_wait_s
from worker.settings import Settings

NOW = 1_000_000
RULES = RetryRules()
K = FailureKind


def judge(
    kind: FailureKind,
    *,
    status: int | None = None,
    attempts: int = 0,
    bad_responses: int = 0,
    max_attempts: int | None = None,
    number: int = 1,
    blocked_since_ms: int | None = None,
    is_proven: bool = True,
    rules: RetryRules = RULES,
    **facts: object,
) -> Decision:
    failure = Failure(kind, "words", http_status=status, **facts)  # type: ignore[arg-type]
    facts = JobFacts(attempts, bad_responses, max_attempts, number, blocked_since_ms, is_proven)
    return decide(failure, facts, now_ms=NOW, rules=rules, rng=random.Random(1))


@pytest.mark.parametrize("kind", [K.SERVER_ERROR, K.UNREACHABLE, K.TIMEOUT, K.BAD_RESPONSE, K.INTERNAL_ERROR])
def test_what_may_pass_is_tried_again_after_a_while_and_burns(kind: FailureKind) -> None:
    decision = judge(kind)
    assert decision.not_before_ms is not None
    assert NOW <= decision.not_before_ms <= NOW + 1000
    assert (decision.burns, decision.is_blocked, decision.shuts_gate, decision.cooldown_s) == (
        True,
        False,
        False,
        None,
    )


@pytest.mark.parametrize(
    ("kind", "last"), [(K.SERVER_ERROR, 6), (K.UNREACHABLE, 6), (K.TIMEOUT, 6), (K.BAD_RESPONSE, 6)]
)
def test_the_last_attempt_of_the_budget_fails(kind: FailureKind, last: int) -> None:
    assert judge(kind, attempts=last - 2).not_before_ms is not None
    assert judge(kind, attempts=last - 1) == Decision(None, burns=True)


def test_a_jobs_own_budget_wins_and_a_bad_response_never_gets_more_than_its_few() -> None:
    assert judge(K.SERVER_ERROR, max_attempts=1).not_before_ms is None
    assert judge(K.SERVER_ERROR, max_attempts=9, attempts=7).not_before_ms is not None
    assert judge(K.BAD_RESPONSE, max_attempts=9, attempts=7).not_before_ms is not None
    assert judge(K.BAD_RESPONSE, max_attempts=9, attempts=2, bad_responses=2).not_before_ms is not None
    assert judge(K.BAD_RESPONSE, max_attempts=9, attempts=3, bad_responses=3).not_before_ms is None
    assert judge(K.BAD_RESPONSE, max_attempts=1).not_before_ms is None


def test_an_endpoint_that_is_not_there_burns_nothing_and_shuts_the_gate_for_all() -> None:
    decision = judge(K.UNREACHABLE, was_sent=False, attempts=5)
    assert decision.not_before_ms is not None
    assert (decision.burns, decision.is_blocked, decision.shuts_gate) == (False, True, True)


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 415, 422])
def test_a_rejection_fails_at_once(status: int) -> None:
    assert judge(K.REJECTED, status=status) == Decision(None, burns=True)


@pytest.mark.parametrize("status", [403, 404, 405])
def test_a_refusal_by_an_endpoint_that_never_answered_shuts_the_gate(status: int) -> None:
    decision = judge(K.REJECTED, status=status, is_proven=False)
    assert decision.not_before_ms is not None
    assert (decision.burns, decision.is_blocked, decision.shuts_gate) == (False, True, True)


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_request_at_fault_fails_whether_the_endpoint_is_proven_or_not(status: int) -> None:
    assert judge(K.REJECTED, status=status, is_proven=False) == Decision(None, burns=True)


@pytest.mark.parametrize(("kind", "status"), [(K.UNAUTHORIZED, 401), (K.QUOTA, 402), (K.QUOTA, 429)])
def test_a_refusal_that_concerns_all_shuts_the_gate_and_burns_nothing(kind: FailureKind, status: int) -> None:
    decision = judge(kind, status=status, attempts=5)
    assert decision.not_before_ms is not None
    assert (decision.burns, decision.is_blocked, decision.shuts_gate) == (False, True, True)


def test_a_rate_limit_burns_nothing_and_needs_no_probe() -> None:
    decision = judge(K.RATE_LIMITED, status=429, attempts=5)
    assert decision.not_before_ms is not None
    assert (decision.burns, decision.is_blocked, decision.shuts_gate, decision.cooldown_s) == (
        False,
        True,
        False,
        None,
    )


@pytest.mark.parametrize("kind", [K.UNAUTHORIZED, K.QUOTA, K.RATE_LIMITED])
def test_only_a_job_whose_patience_is_spent_fails_at_a_gate(kind: FailureKind) -> None:
    patience_ms = 3_600_000
    assert judge(kind, blocked_since_ms=NOW - patience_ms + 1).not_before_ms is not None
    decision = judge(kind, blocked_since_ms=NOW - patience_ms)
    assert (decision.not_before_ms, decision.burns) == (None, False)
    assert judge(kind, blocked_since_ms=0, rules=RetryRules(gate_patience_s=NOW / 1000)).not_before_ms is None


def test_an_invalid_request_fails_without_burning() -> None:
    assert judge(K.INVALID_REQUEST) == Decision(None, burns=False)


@pytest.mark.parametrize("kind", [K.SERVER_ERROR, K.RATE_LIMITED, K.BAD_RESPONSE])
def test_what_the_endpoint_asked_for_is_obeyed_by_all(kind: FailureKind) -> None:
    decision = judge(kind, retry_after_s=12.0)
    assert decision.not_before_ms is not None
    assert NOW + 12_000 <= decision.not_before_ms <= NOW + 12_000 + 12_000
    assert decision.cooldown_s == 12.0


def test_a_retry_after_is_capped_and_never_negative() -> None:
    assert judge(K.SERVER_ERROR, retry_after_s=1e9).cooldown_s == 3600.0
    assert judge(K.SERVER_ERROR, retry_after_s=-5.0).cooldown_s == 0.0
    decision = judge(K.SERVER_ERROR, retry_after_s=0.0)
    assert decision.not_before_ms is not None
    assert decision.not_before_ms <= NOW + 100


@pytest.mark.parametrize("kind", [K.SERVER_ERROR, K.TIMEOUT, K.BAD_RESPONSE, K.RATE_LIMITED, K.REJECTED])
def test_a_no_to_trying_again_is_final(kind: FailureKind) -> None:
    assert judge(kind, status=500, should_retry=False) == Decision(None, burns=True)


def test_a_yes_to_trying_again_overrides_a_rejection_within_the_budget() -> None:
    assert judge(K.REJECTED, status=422, should_retry=True).not_before_ms is not None
    assert judge(K.REJECTED, status=422, should_retry=True, attempts=5).not_before_ms is None


def test_a_refused_key_waits_at_the_gate_whatever_the_header_says() -> None:
    assert judge(K.UNAUTHORIZED, status=401, should_retry=False).shuts_gate


@given(
    kind=st.sampled_from([kind for kind in K if kind is not K.INTERRUPTED]),
    status=st.sampled_from([None, 200, 400, 401, 402, 403, 404, 408, 429, 500, 503]),
    attempts=st.integers(0, 20),
    max_attempts=st.none() | st.integers(1, 20),
    number=st.integers(1, 10_000),
    blocked=st.none() | st.integers(0, NOW),
    is_proven=st.booleans(),
    retry_after_s=st.none() | st.floats(-10, 1e7),
    should_retry=st.sampled_from([None, True, False]),
    seed=st.integers(0, 99),
)
def test_any_decision_keeps_within_budget_and_bounds(
    kind: FailureKind,
    status: int | None,
    attempts: int,
    max_attempts: int | None,
    number: int,
    blocked: int | None,
    is_proven: bool,
    retry_after_s: float | None,
    should_retry: bool | None,
    seed: int,
) -> None:
    failure = Failure(kind, "", status, retry_after_s=retry_after_s, should_retry=should_retry)
    facts = JobFacts(attempts, attempts, max_attempts, number, blocked, is_proven)
    decision = decide(failure, facts, now_ms=NOW, rules=RULES, rng=random.Random(seed))
    budget = 6 if max_attempts is None else max_attempts
    asked_s = 0.0 if retry_after_s is None else min(max(retry_after_s, 0.0), RULES.retry_after_cap_s)
    if decision.not_before_ms is not None:
        delay_s = (decision.not_before_ms - NOW) / 1000
        assert asked_s - 0.001 <= delay_s <= asked_s + RULES.backoff_cap_s
        assert not decision.burns or attempts + 1 < budget
    assert (
        decision.burns or kind is K.INVALID_REQUEST or decision.is_blocked or decision.not_before_ms is None
    )
    assert not (decision.burns and decision.is_blocked)


@given(
    n=st.integers(1, 10_000),
    base_s=st.floats(0.001, 100),
    cap_s=st.floats(0.001, 10_000),
    seed=st.integers(0, 9),
)
def test_a_delay_is_within_the_cap_and_the_growing_base(
    n: int, base_s: float, cap_s: float, seed: int
) -> None:
    delay_s = decide_delay_s(n, base_s=base_s, cap_s=cap_s, rng=random.Random(seed))
    assert 0 <= delay_s <= cap_s
    assert delay_s <= base_s * 2.0 ** min(n - 1, 60)


def test_attempts_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="begins at 1"):
        decide_delay_s(0, base_s=1, cap_s=1, rng=random.Random())


def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    rng = random.Random(7)
    delays = {round(decide_delay_s(5, base_s=1, cap_s=120, rng=rng), 2) for _ in range(100)}
    assert len(delays) > 80
    assert max(delays) - min(delays) > 12


@pytest.mark.parametrize("number", [1, 3, 50])
def test_what_this_machine_lacks_is_nobodys_attempt_and_no_gates_business(number: int) -> None:
    failure = Failure(K.UNREACHABLE, "no more open files", was_sent=False, is_local=True)
    facts = JobFacts(5, 0, 6, number, None, False)
    for seed in range(20):
        found = decide(failure, facts, now_ms=NOW, rules=RetryRules(), rng=random.Random(seed))
        assert (found.burns, found.is_blocked, found.shuts_gate, found.cooldown_s) == (
            False,
            True,
            False,
            None,
        )
        assert found.not_before_ms is not None
        assert NOW + 1000 <= found.not_before_ms <= NOW + 18_000


def test_the_rules_begin_as_the_settings_do() -> None:
    settings = {name: Settings.model_fields[name].default for name in RetryRules.__dataclass_fields__}
    assert RetryRules(**settings) == RetryRules()


@pytest.mark.parametrize(
    ("hints", "wait_s"),
    [
        (None, None),
        (RateHints(), None),
        (RateHints(Allowance(5, 1, 60.0)), None),
        (RateHints(Allowance(5, 0, None)), None),
        (RateHints(Allowance(5, 0, 0.012)), None),
        (RateHints(Allowance(5, 0, math.nan)), None),
        (RateHints(Allowance(5, 0, 9.0)), 9.0),
        (RateHints(tokens=Allowance(None, 0, 9.0)), 9.0),
        (RateHints(Allowance(5, 0, 9.0), Allowance(5, 0, 30.0)), 30.0),
        (RateHints(Allowance(5, 0, 80_000.0)), 3600.0),
    ],
)
def test_a_limit_that_is_reached_is_waited_for_within_bounds(
    hints: RateHints | None, wait_s: float | None
) -> None:
    assert decide_hinted_wait_s(hints, RULES) == wait_s


def waits_of_a_refused_job(
    round_trip_s: float | None, *, number: int = 8, refused_for_s: float = 0.0, **facts: object
) -> list[float]:
    """Seconds until it is due again, of many draws."""
    failure = Failure(K.RATE_LIMITED, "busy", http_status=429, **facts)  # type: ignore[arg-type]
    job = JobFacts(0, 0, None, number, None, True, round_trip_s=round_trip_s, refused_for_s=refused_for_s)
    rng = random.Random(5)
    found = [decide(failure, job, now_ms=NOW, rules=RULES, rng=rng) for _ in range(500)]
    assert not any(decision.burns or decision.shuts_gate for decision in found)
    return [((decision.not_before_ms or 0) - NOW) / 1000 for decision in found]


@pytest.mark.parametrize("number", [1, 8, 100])
def test_a_refused_job_comes_back_after_a_round_trip_however_often_it_was_refused(number: int) -> None:
    waits = waits_of_a_refused_job(2.0, number=number)
    assert 2.0 <= min(waits) < 2.1 and 2.9 < max(waits) <= 3.0


def test_the_round_trip_is_bounded_and_jobs_of_one_moment_are_spread() -> None:
    assert set(waits_of_a_refused_job(0.01)) == {0.1}
    assert set(waits_of_a_refused_job(1000.0)) == {RULES.backoff_cap_s}
    assert len(set(waits_of_a_refused_job(2.0))) > 300


def test_the_longer_nobody_is_answered_the_longer_a_refused_job_waits() -> None:
    assert max(waits_of_a_refused_job(2.0, refused_for_s=20.0)) <= 3.0
    waits = waits_of_a_refused_job(2.0, refused_for_s=300.0)
    assert 30.0 <= min(waits) < 32.0 and 43.0 < max(waits) <= 45.0
    assert set(waits_of_a_refused_job(2.0, refused_for_s=86_400.0)) == {RULES.backoff_cap_s}


def test_a_wait_of_no_seconds_is_no_wait_that_is_known() -> None:
    assert min(waits_of_a_refused_job(2.0, retry_after_s=0.0)) >= 2.0


def test_without_a_known_round_trip_or_with_a_known_wait_it_is_as_ever() -> None:
    assert max(waits_of_a_refused_job(None)) > 60
    waits = waits_of_a_refused_job(2.0, retry_after_s=50.0)
    assert min(waits) >= 50.0 and max(waits) > 55.0


def test_a_round_trip_shortens_no_other_wait() -> None:
    for kind in (K.SERVER_ERROR, K.TIMEOUT, K.UNAUTHORIZED, K.QUOTA):
        job = JobFacts(3, 0, None, 4, None, True, round_trip_s=0.1)
        known, unknown = (
            decide(Failure(kind, ""), facts, now_ms=NOW, rules=RULES, rng=random.Random(1))
            for facts in (job, replace(job, round_trip_s=None))
        )
        assert known == unknown
