"""When a shut gate lets the next probe through."""

from __future__ import annotations

import pytest

from schemas.failure import FailureKind
from worker.policy.gates import (
    Admission,
    Gate,
    bring_forward,
    cool_down,
    correct_clock,
    decide_admission,
    next_probe_after_s,
    shut_further,
)

NOW = 1_000_000
K = FailureKind


def shut(gate: Gate | None = None, *, now_ms: int = NOW, asked_s: float | None = None) -> Gate:
    return shut_further(gate, K.UNAUTHORIZED, now_ms=now_ms, asked_s=asked_s)


def test_no_gate_is_an_open_one() -> None:
    assert decide_admission(None, now_ms=NOW) is Admission.OPEN


def test_a_shut_gate_lets_a_probe_through_when_its_time_has_come() -> None:
    gate = shut()
    assert gate.until_ms == NOW + 1000
    assert decide_admission(gate, now_ms=NOW + 999) is Admission.SHUT
    assert decide_admission(gate, now_ms=NOW + 1000) is Admission.PROBE


def test_each_refused_probe_doubles_the_wait_up_to_a_minute() -> None:
    gate, now_ms, waits = None, NOW, []
    for _ in range(9):
        gate = shut(gate, now_ms=now_ms)
        waits.append((gate.until_ms - now_ms) // 1000)
        now_ms = gate.until_ms
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_thousand_refusals_of_calls_in_flight_count_once() -> None:
    gate = shut()
    assert shut(gate, now_ms=NOW + 500) is gate


def test_what_the_endpoint_asked_for_is_the_least_wait() -> None:
    assert shut(asked_s=90.0).until_ms == NOW + 90_000
    assert shut(asked_s=0.1).until_ms == NOW + 1000


def test_a_cooldown_is_over_by_itself() -> None:
    gate = cool_down(None, K.RATE_LIMITED, now_ms=NOW, asked_s=5)
    assert decide_admission(gate, now_ms=NOW + 4999) is Admission.SHUT
    assert decide_admission(gate, now_ms=NOW + 5000) is Admission.OPEN


def test_a_cooldown_never_shortens_a_longer_one_nor_opens_a_shut_gate() -> None:
    long = cool_down(None, K.RATE_LIMITED, now_ms=NOW, asked_s=50)
    assert cool_down(long, K.RATE_LIMITED, now_ms=NOW, asked_s=5) is long
    assert cool_down(long, K.RATE_LIMITED, now_ms=NOW, asked_s=60).until_ms == NOW + 60_000
    refused = shut()
    assert cool_down(refused, K.RATE_LIMITED, now_ms=NOW, asked_s=60) is refused


def test_a_refusal_during_a_cooldown_is_the_first_strike_and_keeps_the_longer_wait() -> None:
    cooling = cool_down(None, K.RATE_LIMITED, now_ms=NOW, asked_s=50)
    gate = shut(cooling)
    assert (gate.strikes, gate.needs_probe, gate.until_ms) == (1, True, NOW + 50_000)


@pytest.mark.parametrize("kind", [K.SERVER_ERROR, K.TIMEOUT, K.UNREACHABLE, K.REJECTED, K.BAD_RESPONSE])
def test_what_passes_by_itself_is_probed_every_five_seconds_at_least(kind: FailureKind) -> None:
    gate, now_ms, waits = None, NOW, []
    for _ in range(6):
        gate = shut_further(gate, kind, now_ms=now_ms, asked_s=None)
        waits.append((gate.until_ms - now_ms) // 1000)
        now_ms = gate.until_ms
    assert waits == [1, 2, 4, 5, 5, 5]


def test_a_late_failure_of_a_call_from_before_is_no_strike() -> None:
    gate = shut()
    later_ms = gate.until_ms + 500  # a probe is out
    assert shut_further(gate, K.UNAUTHORIZED, now_ms=later_ms, asked_s=None, is_probe=False) is gate


def test_a_key_refused_to_one_job_is_tried_with_another_a_second_later_whatever_the_wait() -> None:
    gate, now_ms = None, NOW
    for _ in range(6):
        gate = shut_further(gate, K.UNAUTHORIZED, now_ms=now_ms, asked_s=None, job_id="denied")
        now_ms = gate.until_ms
    assert gate is not None and gate.struck_ms is not None
    assert decide_admission(gate, now_ms=gate.struck_ms + 999) is Admission.SHUT
    assert decide_admission(gate, now_ms=gate.struck_ms + 1000) is Admission.PROBE_OF_OTHERS
    assert decide_admission(gate, now_ms=gate.until_ms) is Admission.PROBE


def test_a_key_refused_to_three_jobs_is_everybodys_trouble_and_is_waited_for() -> None:
    gate = shut()
    for job in ("a", "b", "c", "d"):
        gate = shut_further(gate, K.UNAUTHORIZED, now_ms=NOW, asked_s=None, is_probe=False, job_id=job)
    assert gate.jobs == ("a", "b", "c")
    assert decide_admission(gate, now_ms=gate.until_ms - 1) is Admission.SHUT


def test_an_endpoint_in_trouble_is_not_tried_before_its_time_by_anybody() -> None:
    gate = shut_further(None, K.SERVER_ERROR, now_ms=NOW, asked_s=4.0, job_id="a")
    assert decide_admission(gate, now_ms=NOW + 3999) is Admission.SHUT


def test_a_clock_that_runs_ahead_keeps_nobody_away_for_longer_than_it_meant_to() -> None:
    ahead_ms = NOW + 7 * 3_600_000
    gate = shut_further(None, K.SERVER_ERROR, now_ms=ahead_ms, asked_s=None)
    seen = correct_clock(gate, now_ms=NOW)
    assert seen.until_ms == NOW + 1000
    cooling = correct_clock(cool_down(None, K.RATE_LIMITED, now_ms=ahead_ms, asked_s=30), now_ms=NOW)
    assert cooling.until_ms == NOW + 30_000
    assert correct_clock(seen, now_ms=NOW + 500) == seen


def test_a_sign_of_life_brings_the_next_probe_forward_to_a_second_after_the_last() -> None:
    gate = shut_further(None, K.SERVER_ERROR, now_ms=NOW, asked_s=60.0)
    assert bring_forward(gate, now_ms=NOW + 200).until_ms == NOW + 1000
    assert bring_forward(gate, now_ms=NOW + 5000).until_ms == NOW + 5000
    cooling = cool_down(None, K.RATE_LIMITED, now_ms=NOW, asked_s=60)
    assert bring_forward(cooling, now_ms=NOW + 5000) is cooling, "what was asked for is kept"


def test_probes_that_hang_are_followed_by_others_ever_more_slowly() -> None:
    assert [next_probe_after_s(live) for live in range(6)] == [0.0, 5.0, 5.0, 5.0, 10.0, 15.0]


def test_a_gate_knows_since_when_it_is_shut_however_often_it_is_struck() -> None:
    gate = shut_further(None, K.QUOTA, now_ms=NOW, asked_s=None)
    for n in range(1, 5):
        gate = shut_further(gate, K.QUOTA, now_ms=NOW + n * 100_000, asked_s=None)
    assert gate.since_ms == NOW
    cooling = cool_down(None, K.RATE_LIMITED, now_ms=NOW, asked_s=5)
    assert cool_down(cooling, K.RATE_LIMITED, now_ms=NOW + 2000, asked_s=9).since_ms == NOW
    assert cool_down(cooling, K.RATE_LIMITED, now_ms=NOW + 6000, asked_s=9).since_ms == NOW + 6000
    assert shut_further(cooling, K.QUOTA, now_ms=NOW + 2000, asked_s=None).since_ms == NOW + 2000


def test_the_time_since_when_is_corrected_for_a_writers_clock_that_is_ahead() -> None:
    gate = shut_further(None, K.QUOTA, now_ms=NOW + 60_000, asked_s=None)
    assert correct_clock(gate, now_ms=NOW).since_ms == NOW
