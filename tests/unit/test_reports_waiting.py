"""Why open jobs are not called: one reason for each job, the one that somebody can do something about."""

from __future__ import annotations

import re
from typing import Any

from schemas.failure import FailureKind
from worker.policy.gates import Gate
from worker.reports.waiting import (
    Why,
    describe_oldest_call,
    explain_waiting,
    oldest_call_facts,
    reason_facts,
)
from worker.storage.open_jobs import OldestCall, OpenJobs, Waits
from worker.storage.pauses import Pause
from worker.storage.workers import WorkerFacts

NOW = 1_760_000_000_000
E = "https://endpoint.test"


def a_worker(**facts: Any) -> WorkerFacts:
    values = {
        "id": "w",
        "endpoint": E,
        "hostname": "box",
        "pid": 4711,
        "slots": 4,
        "started_at_ms": NOW - 60_000,
        "beat_at_ms": NOW - 1000,
        "lease_ms": 30_000,
        "running": 0,
    }
    return WorkerFacts(**(values | facts))


def explain(
    *,
    queued: dict[str, int] | None = None,
    waits: list[Waits] | None = None,
    held: dict[str, int] | None = None,
    workers: list[WorkerFacts] | None = None,
    pauses: list[Pause] | None = None,
    gates: dict[str, Gate] | None = None,
    unserved: dict[str, int] | None = None,
    at_budget: dict[str, int] | None = None,
    rates: dict[str, str] | None = None,
) -> list[tuple[Why, int, str]]:
    open_jobs = OpenJobs(queued or {}, waits or [], held or {}, None, at_budget or {})
    reasons = explain_waiting(
        open_jobs,
        workers=[a_worker()] if workers is None else workers,
        pauses=pauses or [],
        gates=gates or {},
        now_ms=NOW,
        unserved={E: unserved} if unserved else {},
        rates=rates or {},
    )
    return [(one.why, one.jobs, one.sentence) for one in reasons]


def test_jobs_that_are_about_to_be_called_need_no_reason() -> None:
    assert explain(queued={E: 100}) == []
    assert explain() == []


def test_jobs_without_a_worker_say_how_to_get_one() -> None:
    [(why, jobs, said)] = explain(queued={E: 1200}, workers=[a_worker(endpoint="another")])
    assert (why, jobs) == (Why.NO_WORKER, 1200)
    assert said == f"1,200 jobs: no worker lives for {E}; `antrean worker` with its settings starts one"


def test_a_worker_that_fell_silent_is_no_worker_and_was_heard_some_time_ago() -> None:
    silent = [a_worker(beat_at_ms=NOW - 90_000), a_worker(beat_at_ms=NOW - 600_000)]
    [(why, jobs, said)] = explain(queued={E: 1}, waits=[Waits(E, "timeout", False, 2, NOW)], workers=silent)
    assert (why, jobs) == (Why.NO_WORKER, 3)
    assert said == f"3 jobs: no worker lives for {E}; the last was heard 1 min 30 s ago"
    assert explain(queued={E: 1}, workers=[*silent, a_worker()]) == []


def test_a_pause_is_the_reason_whatever_else_there_is() -> None:
    found = explain(
        queued={E: 5, "another": 1},
        waits=[Waits(E, "timeout", False, 2, NOW + 9000)],
        workers=[a_worker(endpoint="another")],
        pauses=[Pause(E, "moved", NOW)],
    )
    assert [(why, jobs) for why, jobs, _ in found] == [(Why.PAUSED, 7)]


def test_a_shut_gate_is_the_reason_of_its_own_endpoint_only() -> None:
    gate = Gate(FailureKind.QUOTA, NOW + 45_000, 3, True, wait_ms=45_000, struck_ms=NOW, http_status=402)
    both = [a_worker(), a_worker(endpoint="another")]
    found = explain(queued={E: 5, "another": 5}, workers=both, gates={E: gate})
    assert found == [(Why.GATE, 5, f"5 jobs behind the shut gate of {E} (quota)")]


def test_what_the_gate_is_shut_for_now_comes_before_what_jobs_met_before() -> None:
    gate = Gate(FailureKind.UNAUTHORIZED, NOW + 45_000, 3, True, http_status=401)
    found = explain(
        waits=[
            Waits(E, "timeout", False, 1, NOW + 1000),
            Waits(E, "unreachable", True, 2, NOW - 60_000),
            Waits(E, "unauthorized", True, 3, NOW - 1),
        ],
        gates={E: gate},
    )
    assert [(why, jobs) for why, jobs, _ in found] == [(Why.GATE, 2), (Why.GATE, 3), (Why.RETRY, 1)]
    assert found[0][2] == f"2 jobs behind the shut gate of {E} (unauthorized): the first is due"
    assert found[1][2] == "3 jobs at the gate after unauthorized: the first is due"


def test_jobs_wait_for_a_slot_when_all_are_in_use() -> None:
    busy = [a_worker(running=4), a_worker(slots=2, running=3), a_worker(endpoint="another")]
    assert explain(queued={E: 9}, workers=busy) == [
        (Why.SLOT, 9, f"9 jobs for a free slot: all 6 slots of {E} in use")
    ]
    assert explain(queued={E: 9}, workers=[a_worker(running=3)]) == []
    ahead = a_worker(running=6)
    assert (ahead.slots_in_use, ahead.slots) == (4, 4), "two are claimed ahead"
    assert explain(queued={E: 9}, workers=[ahead, a_worker(running=3)]) == [], "the other has a free slot"
    [(_, _, said)] = explain(queued={E: 1}, workers=[a_worker(slots=1, running=1)])
    assert said == f"1 job for a free slot: the slot of {E} in use"


def test_jobs_in_hand_that_wait_for_a_permit_are_no_calls() -> None:
    worker = a_worker(running=6, calls=1)
    assert (worker.slots_in_use, worker.in_hand, worker.slots) == (1, 5, 4)
    assert explain(queued={E: 9}, workers=[worker], rates={E: "60 requests a minute (set)"}) == [
        (Why.LIMIT, 9, f"9 jobs for their turn at {E}, which is limited to 60 requests a minute (set)")
    ]
    assert explain(queued={E: 9}, workers=[worker]) == [], "they are about to be called"
    assert explain(queued={E: 9}, workers=[a_worker(calls=0)], rates={E: "60"}) == []
    [(why, _, _)] = explain(queued={E: 9}, workers=[a_worker(running=6, calls=4)], rates={E: "60"})
    assert why is Why.SLOT


def test_jobs_of_a_batch_at_its_budget_say_so() -> None:
    assert [(why, jobs) for why, jobs, _ in explain(queued={E: 1}, at_budget={E: 3}, workers=[])] == [
        (Why.BUDGET, 3),
        (Why.NO_WORKER, 1),
    ]
    [(_, _, said)] = explain(at_budget={E: 1})
    assert said == (
        "1 job at the budget of their batch: `antrean batches` names it, and `antrean budget BATCH AMOUNT` raises it"
    )


def test_waiting_jobs_say_after_what_and_when_the_first_goes_on() -> None:
    found = explain(
        waits=[
            Waits(E, "timeout", False, 3, NOW + 45_000),
            Waits(E, "server_error", True, 1, NOW - 1),
            Waits(E, None, False, 2, NOW + 172_800_000),
        ]
    )
    at = r"at [-0-9 ]*\d\d:\d\d:\d\d, in"
    patterns = [
        (Why.RETRY, 3, rf"3 jobs for the next attempt after timeout: the first {at} 45 s"),
        (Why.GATE, 1, r"1 job at the gate after server_error: the first is due"),
        (Why.LATER, 2, rf"2 jobs for the time that was asked for: the first {at} 172,800 s"),
    ]
    for (why, jobs, said), (expected, count, pattern) in zip(found, patterns, strict=True):
        assert (why, jobs) == (expected, count)
        assert re.fullmatch(pattern, said), said


def test_held_jobs_are_told_beside_the_others() -> None:
    found = explain(queued={E: 1}, held={E: 7}, workers=[])
    assert [(why, jobs) for why, jobs, _ in found] == [(Why.HELD, 7), (Why.NO_WORKER, 1)]
    assert found[0][2] == "7 jobs held since their run was stopped: the same `antrean run` goes on"


def test_the_oldest_call_is_told_with_its_age() -> None:
    call = OldestCall("job-1", E, NOW - 245_000, "box", 4711)
    assert describe_oldest_call(call, now_ms=NOW) == "oldest call: 4 min 05 s, job job-1, by box:4711"
    assert oldest_call_facts(call, now_ms=NOW) == {
        "job_id": "job-1",
        "endpoint": E,
        "started_at": "2025-10-09T08:49:15.000+00:00",
        "age_s": 245.0,
        "hostname": "box",
        "pid": 4711,
    }
    ahead = OldestCall("job-1", E, NOW + 5000, None, None)  # the worker's clock is ahead of ours
    assert describe_oldest_call(ahead, now_ms=NOW) == "oldest call: 0.00 s, job job-1"
    assert oldest_call_facts(None, now_ms=NOW) is None


def test_a_program_is_told_the_reason_by_name_and_the_time() -> None:
    open_jobs = OpenJobs({}, [Waits(E, "timeout", False, 3, NOW + 1500)], {}, None)
    [one] = explain_waiting(open_jobs, workers=[a_worker()], pauses=[], gates={}, now_ms=NOW)
    assert reason_facts(one) == {
        "why": "retry",
        "endpoint": E,
        "jobs": 3,
        "kind": "timeout",
        "next_at": "2025-10-09T08:53:21.500+00:00",
    }


def test_jobs_of_a_model_that_nothing_serves_are_told_apart_from_the_others() -> None:
    busy = [a_worker(running=4)]
    assert explain(queued={E: 10}, unserved={"m9": 3, "m8": 1}, workers=busy) == [
        (Why.NO_ENDPOINT, 4, "4 jobs for an endpoint that serves m8, m9: no table has it in its `models`"),
        (Why.SLOT, 6, f"6 jobs for a free slot: all 4 slots of {E} in use"),
    ]
    [(why, jobs, _)] = explain(queued={E: 4}, unserved={"m9": 4}, workers=[])
    assert (why, jobs) == (Why.NO_ENDPOINT, 4)
    [(why, jobs, said)] = explain(queued={E: 9}, unserved={f"m{n}": 1 for n in range(9)})
    assert said.startswith("9 jobs for an endpoint that serves m0, m1, m2, m3, m4 …:")
    paused = explain(queued={E: 4}, unserved={"m9": 4}, pauses=[Pause(E, None, NOW)])
    assert [why for why, _, _ in paused] == [Why.PAUSED]
