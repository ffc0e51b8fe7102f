"""The breaker with real workers: what an endpoint is called while its gate is shut, half open and open again.

Its decisions alone are in `tests/unit/test_policy_outages.py` and `tests/unit/test_outages_simulated.py`.
"""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import func, select

from tests.support.arena import Arena
from worker.storage.tables import jobs

LATENCY_S = 0.2
SLOTS = 8  # of each of two workers
KNOWN_S = 2.0  # by then all workers know that the gate is shut, and calls from before have ended


def calls(arena: Arena) -> int:
    return sum(int(call["received"]) for call in arena.simulator.calls().values())


def most_burnt(arena: Arena) -> int:
    with arena.ledger.read() as connection:
        return int(connection.execute(select(func.max(jobs.c.attempts))).scalar_one())


def begin(arena: Arena, jobs_: int) -> None:
    arena.queue(jobs_)
    for _ in range(2):
        arena.worker(concurrency=SLOTS, lone_slots=0)
    arena.wait_for(lambda: arena.ended() > 2 * SLOTS, "the run is in its middle")


@pytest.mark.default_cases(1)
@pytest.mark.simulator("--latency", str(LATENCY_S))
@pytest.mark.parametrize("models_status", [None, 503], ids=["models are listed", "models are away"])
def test_completions_that_fail_are_called_once_a_probe_over_all_workers(
    arena: Arena, models_status: int | None
) -> None:
    away_s = arena.size(30, 8)
    begin(arena, arena.size(1000, 300))
    arena.simulator.set_faults(outage_status=503, models_status=models_status)
    threading.Event().wait(KNOWN_S)
    before = calls(arena)
    threading.Event().wait(away_s)  # how long it is away is the scenario
    meanwhile = calls(arena) - before
    # After 1, 2, 4, 5, 5 … s. A list that failed six times, which takes 22 s, lets a job be called.
    assert meanwhile <= (away_s // 22 if models_status else 2 + away_s // 4), meanwhile
    assert meanwhile or models_status, "a list that is answered is followed by a job"
    assert arena.count("failed") == 0
    arena.simulator.set_faults(outage_status=None, models_status=None)
    recover_s = arena.wait_for_progress(within_s=10)
    arena.wait_for(lambda: "gate.opened" in arena.worker_log(), "the gate is open again")
    arena.conclude(
        f"completions fail for {away_s} s, models {models_status or 200}",
        most_extra_calls=4 * SLOTS + meanwhile + 8,
        recover_s=recover_s,
    )
    assert most_burnt(arena) <= 1, "who failed before the gate shut has burnt one attempt"


@pytest.mark.full
@pytest.mark.simulator("--latency", str(LATENCY_S))
def test_an_endpoint_that_answers_one_call_in_ten_meets_no_storm_and_fails_no_job(arena: Arena) -> None:
    begin(arena, 100)
    arena.simulator.set_faults(rate_500=0.9)
    arena.queue(arena.size(1000, 200))
    arena.wait_for(lambda: "gate.shut" in arena.worker_log(), "the gate is shut")
    threading.Event().wait(KNOWN_S)
    before, for_s = calls(arena), arena.size(40, 8)
    threading.Event().wait(for_s)
    meanwhile = calls(arena) - before
    assert meanwhile <= for_s + 6, meanwhile
    assert arena.count("failed") == 0
    arena.simulator.set_faults(rate_500=0.0)
    recover_s = arena.wait_for_progress(within_s=10)
    arena.conclude("one call in ten is answered", most_extra_calls=6 * SLOTS + for_s, recover_s=recover_s)


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.05", "--seed", "5")
@pytest.mark.settings(backoff_base_s=0.05, backoff_cap_s=0.2, max_attempts=50)
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_a_flaky_endpoint_is_never_shut(arena: Arena, rate: float) -> None:
    begin(arena, 100)
    arena.simulator.set_faults(rate_500=rate)
    flaky = arena.size(4000, 800)
    arena.queue(flaky)
    arena.wait_for(lambda: arena.ended() == arena.queued, "all jobs end", within_s=120)
    assert "gate.shut" not in arena.worker_log()
    faults = sum(arena.simulator.stats()["faults"].values())
    assert faults > flaky * rate * 0.7
    arena.conclude(f"{rate:.0%} of the calls answer 500", most_extra_calls=faults)
