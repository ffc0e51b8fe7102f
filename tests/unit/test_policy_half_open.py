"""A gate that is half open: how many calls go, when it opens, and when it is shut again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.failure import FailureKind
from worker.policy.gates import Admission, Gate, decide_admission, shut_further
from worker.policy.half_open import AT_ONCE, count_needed, next_trial_after_s

NOW = 1_000_000
K = FailureKind
STRUCK = Gate(K.SERVER_ERROR, NOW, 3, needs_probe=True, struck_ms=NOW - 4000, since_ms=NOW - 9000)


def strike(gate: Gate, job: str, *, now_ms: int = NOW, is_probe: bool = True) -> Gate:
    return shut_further(gate, K.SERVER_ERROR, now_ms=now_ms, asked_s=None, is_probe=is_probe, job_id=job)


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        (K.SERVER_ERROR, 3),
        (K.TIMEOUT, 3),
        (K.UNREACHABLE, 3),
        (K.BAD_RESPONSE, 3),
        (K.REJECTED, 1),
        (K.UNAUTHORIZED, 1),
        (K.QUOTA, 1),
    ],
)
def test_an_outage_ends_with_three_answers_and_all_else_with_one(kind: FailureKind, needed: int) -> None:
    assert count_needed(replace(STRUCK, kind=kind)) == needed


def test_a_gate_that_was_opened_needs_no_more() -> None:
    assert count_needed(None) == 1
    assert count_needed(Gate(K.RATE_LIMITED, NOW, 0, needs_probe=False)) == 1


def test_a_half_open_gate_lets_a_few_through_once_its_time_has_come() -> None:
    assert decide_admission(STRUCK, now_ms=NOW) is Admission.PROBE
    assert decide_admission(replace(STRUCK, answered=1), now_ms=NOW) is Admission.TRIAL
    assert decide_admission(replace(STRUCK, answered=1), now_ms=NOW - 1) is Admission.SHUT


def test_three_go_side_by_side_and_more_only_while_none_of_them_fails() -> None:
    assert [next_trial_after_s(live) for live in range(5)] == [0.0, 0.0, 0.0, 0.25, 0.25]
    assert AT_ONCE == 3


@pytest.mark.parametrize(
    ("answered", "failures", "is_shut"), [(1, 1, False), (1, 2, True), (2, 2, False), (2, 3, True)]
)
def test_it_is_shut_again_once_more_have_failed_than_were_answered(
    answered: int, failures: int, is_shut: bool
) -> None:
    gate = replace(STRUCK, answered=answered)
    for n in range(failures):
        gate = strike(gate, f"job{n}")
    assert gate.is_half_open is not is_shut
    if is_shut:
        assert (gate.strikes, gate.answered, gate.failed) == (4, 0, 0)
        assert gate.until_ms == NOW + 5000, "the backoff goes on where it was"
        assert gate.since_ms == STRUCK.since_ms


def test_calls_that_fail_beside_the_one_that_shut_it_again_make_nobody_wait_longer() -> None:
    gate = strike(strike(replace(STRUCK, answered=1), "a"), "b")
    after = strike(strike(gate, "c", now_ms=NOW + 100), "d", now_ms=NOW + 200)
    assert (after.strikes, after.until_ms) == (gate.strikes, gate.until_ms)


def test_a_call_from_before_the_outage_shuts_no_half_open_gate() -> None:
    gate = replace(STRUCK, answered=1)
    for n in range(9):
        gate = strike(gate, f"old{n}", is_probe=False)
    assert gate.is_half_open and gate.failed == 0
