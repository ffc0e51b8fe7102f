"""A half-open gate in both stores: shared by all workers, and counted by one of them at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from schemas.failure import FailureKind
from tests.support.clock import FakeClock
from tests.support.ledger import at_once
from worker.logs.sink import flush_logs
from worker.policy.gates import Gate
from worker.throttle.gatekeeper import Gatekeeper, Permit
from worker.throttle.key_gates import KeyGates
from worker.throttle.redis_store import RedisGateStore
from worker.throttle.store import GateStore, KeyName

K = FailureKind
Make = Callable[[], Gatekeeper]


def half_open(keeper: Gatekeeper, clock: FakeClock, kind: FailureKind = K.SERVER_ERROR) -> None:
    """An outage, in which the first probe is answered."""
    keeper.shut(kind, asked_s=None, job_id="a", http_status=503)
    clock.advance(1.0)
    probe = keeper.admit("probe")
    assert probe.is_probe
    keeper.succeeded(probe)
    clock.advance(0.3)  # the others have looked


def test_after_a_good_probe_three_calls_go_over_all_workers_and_then_all(
    make: Make, clock: FakeClock
) -> None:
    first, second = make(), make()
    half_open(first, clock)
    assert (first.room(64), second.room(64)) == (3, 3)
    trials = [(keeper, keeper.admit(job)) for keeper, job in ((first, "b"), (second, "c"), (second, "d"))]
    assert all(trial.is_probe for _, trial in trials)
    assert not first.admit("e").is_granted and not second.admit("e").is_granted
    for keeper, trial in trials[:2]:
        assert first.openings == 0
        keeper.succeeded(trial)
    clock.advance(0.3)
    assert first.admit("e") == second.admit("f") == Permit(is_probe=False)
    assert (first.room(64), first.openings, second.openings) == (64, 1, 1)


def test_answers_of_the_same_moment_are_each_counted(make: Make, clock: FakeClock, store: GateStore) -> None:
    for _ in range(20):
        keepers = [make(), make()]
        half_open(keepers[0], clock)
        trials = [keeper.admit("x") for keeper in keepers]
        at_once(2, lambda i, k=keepers, t=trials: k[i].succeeded(t[i]))  # type: ignore[misc]
        assert store.fetch() is None


def test_calls_that_fail_shut_it_again_for_all_where_the_backoff_was(
    make: Make, clock: FakeClock, store: GateStore
) -> None:
    first, second = make(), make()
    first.shut(K.SERVER_ERROR, asked_s=None, job_id="a")
    for _ in range(2):
        clock.advance(5.0)
        with first.admit("b") as probe:
            first.shut(K.SERVER_ERROR, asked_s=None, permit=probe, job_id="b")
    clock.advance(5.0)
    first.succeeded(first.admit("c"))
    clock.advance(0.3)
    trials = [keeper.admit("d") for keeper in (first, second, second)]
    for keeper, trial in zip((first, second, second), trials, strict=True):
        keeper.shut(K.SERVER_ERROR, asked_s=None, permit=trial, job_id="d")
    gate = store.fetch()
    assert gate is not None and (gate.strikes, gate.is_half_open) == (4, False)
    clock.advance(4.9)
    assert not first.admit("e").is_granted and not second.admit("e").is_granted
    clock.advance(0.2)
    assert first.admit("e").is_probe and not second.admit("f").is_granted, "one at a time again"


def test_one_that_fails_among_answers_keeps_it_half_open(
    make: Make, clock: FakeClock, store: GateStore
) -> None:
    keeper = make()
    half_open(keeper, clock)
    trials = [keeper.admit(job) for job in "bcd"]
    keeper.shut(K.SERVER_ERROR, asked_s=None, permit=trials[0], job_id="b")
    keeper.succeeded(trials[1])
    gate = store.fetch()
    assert gate is not None and (gate.answered, gate.failed, gate.strikes) == (2, 1, 1)
    keeper.succeeded(trials[2])
    assert store.fetch() is None


def test_while_calls_take_long_more_of_them_begin_and_there_is_a_limit(make: Make, clock: FakeClock) -> None:
    keeper = make()
    half_open(keeper, clock)
    begun = []
    for quarter in range(120):
        while keeper.admit(f"job{quarter}").is_granted:
            begun.append(quarter)
        clock.advance(0.25)
    assert begun == [0, 0, 0, *range(1, 10)]


def test_without_another_job_to_try_the_first_answer_opens_it(
    make: Make, clock: FakeClock, store: GateStore
) -> None:
    keeper = make()
    keeper.shut(K.TIMEOUT, asked_s=None)
    clock.advance(1.0)
    keeper.succeeded(keeper.admit("alone"), has_others=lambda: False)
    assert store.fetch() is None


@pytest.mark.parametrize("kind", [K.UNAUTHORIZED, K.QUOTA, K.REJECTED])
def test_a_refusal_in_words_ends_with_the_first_answer(
    make: Make, clock: FakeClock, store: GateStore, kind: FailureKind
) -> None:
    half_open(make(), clock, kind)
    assert store.fetch() is None


def test_an_answer_that_comes_late_opens_no_later_gate(
    make: Make, clock: FakeClock, store: GateStore
) -> None:
    keeper = make()
    half_open(keeper, clock)
    trials = [keeper.admit(job) for job in "bcd"]
    for trial in trials[:2]:
        keeper.succeeded(trial)
    keeper.shut(K.TIMEOUT, asked_s=None)
    keeper.succeeded(trials[2])
    gate = store.fetch()
    assert gate is not None and not gate.is_half_open


def test_a_half_open_gate_is_opened_wholly_by_hand(make: Make, clock: FakeClock, store: GateStore) -> None:
    keeper = make()
    half_open(keeper, clock)
    store.clear_all()
    clock.advance(0.3)
    assert [keeper.admit(job).is_probe for job in "bcdefg"] == [False] * 6


def test_a_call_needs_the_half_open_gate_and_its_key(clock: FakeClock, store: GateStore) -> None:
    key = KeyName("0a1b2c3d4e5f", "key 1")
    gates = KeyGates(store, clock, probe_ttl_s=60.0, keys=lambda: [key])
    half_open(gates.endpoint, clock)
    assert gates.room(64) == 3
    trial = gates.admit("b")
    assert (trial.is_probe, trial.key) == (True, key)
    gates.shut(K.QUOTA, asked_s=None, permit=trial, job_id="b", http_status=402)
    clock.advance(1.0)
    assert gates.room(64) == 1, "one probe of the key, whatever the endpoint allows"


def test_the_broker_keeps_all_of_a_half_open_gate_and_forgets_it_when_nobody_calls(
    valkey: redis.Redis, clock: FakeClock
) -> None:
    store = RedisGateStore(valkey, "e", goes_by_callers=True)
    for jobs in ((), ("a", "b")):
        gate = Gate(
            K.SERVER_ERROR, 1_764_250_000_123, 3, True, 5000, 1_764_249_999_999, 503, jobs, 1_764_249_000_001
        )
        store.put(gate)
        assert store.take_probe(ttl_s=60, token="t")
        assert store.answer_probe("t", needed=3) is False
        found = store.fetch()
        assert found == Gate(
            K.SERVER_ERROR,
            1_764_250_000_123,
            3,
            True,
            5000,
            1_764_249_999_999,
            503,
            jobs,
            1_764_249_000_001,
            answered=1,
        )
        assert store.answer_probe("t", needed=3) is None, "it has ended"
    [key] = valkey.keys("*gate")
    assert 590 <= valkey.ttl(key) <= 600  # type: ignore[operator]
    assert store.failed_open == 0


def test_a_gate_that_flaps_is_told_of_once_in_a_while(
    make: Make, clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    keeper = make()
    flush_logs()  # of the tests before
    capsys.readouterr()
    for _ in range(50):
        keeper.shut(K.SERVER_ERROR, asked_s=None, http_status=503)
        clock.advance(1.0)
        for job in "abc":
            probe = keeper.admit(job)
            assert probe.is_granted
            keeper.succeeded(probe)
    told = capsys.readouterr()
    text = told.out + told.err
    assert 4 <= text.count("gate.shut") <= 6
    assert text.count("gate.opened") == text.count("gate.shut")
    assert "503" in text and "server_error" in text
