"""A run ends when nothing has moved at a shut gate for as long as it was told to wait."""

from __future__ import annotations

from worker.operations.run_patience import RunPatience


def test_a_gate_that_stays_shut_spends_the_patience() -> None:
    patience = RunPatience(60.0, now_s=0.0)
    spent = [patience.is_spent(done=3, is_shut=True, now_s=float(n)) for n in range(100)]
    assert spent.index(True) == 60


def test_a_job_that_ends_begins_the_wait_anew() -> None:
    patience = RunPatience(60.0, now_s=0.0)
    spent = [patience.is_spent(done=n // 50, is_shut=True, now_s=float(n)) for n in range(200)]
    assert True not in spent


def test_slow_calls_at_an_open_gate_spend_nothing_and_the_wait_begins_when_it_shuts() -> None:
    patience = RunPatience(60.0, now_s=0.0)
    spent = [patience.is_spent(done=0, is_shut=n >= 300, now_s=float(n)) for n in range(400)]
    assert spent.index(True) == 359


def test_a_gate_that_is_open_for_a_moment_between_two_cooldowns_is_still_shut() -> None:
    patience = RunPatience(60.0, now_s=0.0)
    spent = [patience.is_spent(done=0, is_shut=n % 10 > 2, now_s=float(n)) for n in range(100)]
    assert 60 <= spent.index(True) <= 63


def test_without_a_patience_a_run_waits_on() -> None:
    patience = RunPatience(None, now_s=0.0)
    assert not any(patience.is_spent(done=0, is_shut=True, now_s=n * 1e6) for n in range(9))
