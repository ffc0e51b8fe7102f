"""When a shut gate lets the next probe through."""

from __future__ import annotations

from schemas.failure import FailureKind
from worker.policy.gates import Admission, Gate, decide_admission, pause, shut_further

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


def test_a_pause_is_over_by_itself() -> None:
    gate = pause(None, K.RATE_LIMITED, now_ms=NOW, asked_s=5)
    assert decide_admission(gate, now_ms=NOW + 4999) is Admission.SHUT
    assert decide_admission(gate, now_ms=NOW + 5000) is Admission.OPEN


def test_a_pause_never_shortens_a_longer_one_nor_opens_a_shut_gate() -> None:
    long = pause(None, K.RATE_LIMITED, now_ms=NOW, asked_s=50)
    assert pause(long, K.RATE_LIMITED, now_ms=NOW, asked_s=5) is long
    assert pause(long, K.RATE_LIMITED, now_ms=NOW, asked_s=60).until_ms == NOW + 60_000
    refused = shut()
    assert pause(refused, K.RATE_LIMITED, now_ms=NOW, asked_s=60) is refused


def test_a_refusal_during_a_pause_is_the_first_strike_and_keeps_the_longer_wait() -> None:
    paused = pause(None, K.RATE_LIMITED, now_ms=NOW, asked_s=50)
    gate = shut(paused)
    assert (gate.strikes, gate.needs_probe, gate.until_ms) == (1, True, NOW + 50_000)
