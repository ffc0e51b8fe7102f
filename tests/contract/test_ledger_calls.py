"""What the calls of a run came to, and which are the last, on both databases."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Any

from schemas.failure import FailureKind
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    claim,
    claim_one,
    give_back,
    put_one,
    record,
    setback,
    success,
)
from worker.operations.tracking import Progress, Tracker
from worker.policy.gates import Gate
from worker.storage.calls import CallSums, fetch_oldest_call, sum_calls
from worker.storage.engine import Ledger
from worker.storage.moves import retry_jobs
from worker.storage.pauses import pause
from worker.storage.wants import Wanted
from worker.storage.workers import rescue_jobs


def again(ledger: Ledger, id_: str) -> None:
    """A failed job is queued again, by a person."""
    ledger.run(partial(retry_jobs, ids=[id_], now_ms=NOW))


def test_each_call_is_summed_by_what_it_came_to(ledger: Ledger) -> None:
    good, bad, open_ = (put_one(ledger) for _ in range(3))
    record(ledger, setback(claim_one(ledger, good, token="a"), kind=FailureKind.TIMEOUT))
    again(ledger, good)
    record(ledger, give_back(claim_one(ledger, good, token="b")))
    record(ledger, success(claim_one(ledger, good, token="c"), latency_ms=40))
    record(ledger, setback(claim_one(ledger, bad, token="d"), kind=FailureKind.RATE_LIMITED))
    again(ledger, bad)
    record(ledger, setback(claim_one(ledger, bad, token="e"), kind=FailureKind.REJECTED))
    record(
        ledger,
        setback(claim_one(ledger, open_, token="f"), kind=FailureKind.TIMEOUT, not_before_ms=NOW + 9),
    )
    sums = sum_calls(ledger, [good, bad, open_, good], since_ms=0)
    assert sums.latencies_ms == {40: 1}
    assert sums.failed == {"timeout": 2, "rate_limited": 1, "rejected": 1}
    assert sums.retried == {"timeout": 2, "rate_limited": 1}, "what was refused was the last of its job"
    assert sum_calls(ledger, [open_], since_ms=0).failed == {"timeout": 1}


def test_jobs_that_were_never_called_have_sums_of_nothing(ledger: Ledger) -> None:
    """So of a run whose deadline was over before its first call."""
    assert sum_calls(ledger, [put_one(ledger)], since_ms=0) == CallSums()


def test_calls_of_before_and_requests_that_were_never_sent_do_not_count(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    record(ledger, setback(claim_one(ledger, id_, token="a"), ended_at_ms=NOW + 10))
    again(ledger, id_)
    record(ledger, success(claim_one(ledger, id_, token="b"), ended_at_ms=NOW + 20, latency_ms=5))
    sums = sum_calls(ledger, [id_], since_ms=NOW + 11)
    assert (sums.latencies_ms, sums.failed) == ({5: 1}, {})
    never = put_one(ledger)
    record(ledger, setback(claim_one(ledger, never, token="c"), kind=FailureKind.INVALID_REQUEST))
    assert not sum_calls(ledger, [never], since_ms=0).failed


def test_a_call_whose_worker_died_is_lost_and_tried_again(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    claim_one(ledger, id_)
    ledger.run(partial(rescue_jobs, worker_id="w1", max_solo_losses=2, now_ms=NOW))
    sums = sum_calls(ledger, [id_], since_ms=0)
    assert (sums.failed, sums.retried) == ({"lost": 1}, {"lost": 1})


def test_more_jobs_than_fit_a_page_are_summed(ledger: Ledger) -> None:
    ids = [put_one(ledger) for _ in range(501)]
    for start in range(0, 501, 100):
        got = claim(ledger, *ids[start : start + 100])
        record(ledger, *(success(job) for job in got.values()))
    assert sum_calls(ledger, ids, since_ms=0).latencies_ms == {7: 501}


def test_the_oldest_call_is_told_when_only_calls_are_left(ledger: Ledger) -> None:
    first, second, third = (put_one(ledger) for _ in range(3))
    claim_one(ledger, second, token="a", now_ms=NOW + 5)
    claim_one(ledger, first, token="b", now_ms=NOW + 9)
    with ledger.read() as connection:
        assert fetch_oldest_call(connection, [first, second]) == (second, NOW + 5)
        assert fetch_oldest_call(connection, [first, second, third]) is None, "one is queued"
        assert fetch_oldest_call(connection, [first, "gone"]) is None
        assert fetch_oldest_call(connection, []) is None


def test_a_run_names_the_last_slow_call_and_its_age(ledger: Ledger) -> None:
    now_ms = time.time_ns() // 1_000_000
    slow, other = put_one(ledger), put_one(ledger)
    progress = Progress(total=2)
    tracker = Tracker(ledger, [Wanted(slow, "notes/a.txt"), Wanted(other, "notes/b.txt")], progress)
    job = claim_one(ledger, slow, token="a", now_ms=now_ms - 84_500)
    assert tracker.refresh().trouble is None, "the other one is still to begin"
    quick = claim_one(ledger, other, token="b", now_ms=now_ms - 6_000)
    assert tracker.refresh().trouble == "the last 2 calls, the oldest for 1 min 24 s: notes/a.txt"
    record(ledger, success(job, ended_at_ms=now_ms))
    assert (tracker.refresh().trouble or "").startswith("the last call, for 6 s: notes/b.txt")
    record(ledger, success(quick, ended_at_ms=now_ms))
    assert tracker.refresh().trouble is None


def test_a_call_that_has_just_begun_is_not_named(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    tracker = Tracker(ledger, [id_], Progress(total=1))
    claim_one(ledger, id_, now_ms=time.time_ns() // 1_000_000)
    assert tracker.refresh().trouble is None


def shut(kind: FailureKind, until_ms: int) -> Gate:
    return Gate(kind, until_ms, 1, needs_probe=True, http_status=401)


def block(ledger: Ledger, kind: FailureKind, message: str, not_before_ms: int, **facts: Any) -> None:
    endpoint = facts.get("endpoint", ENDPOINT)
    id_ = put_one(ledger, **facts)
    job = claim(ledger, id_, endpoint=endpoint)[id_]
    record(
        ledger,
        setback(
            job,
            kind=kind,
            message=message,
            not_before_ms=not_before_ms,
            burns=False,
            is_blocked=True,
        ),
    )


def test_a_run_waits_for_what_the_gate_is_shut_for_now_not_for_what_a_job_met_before(ledger: Ledger) -> None:
    now_ms = time.time_ns() // 1_000_000
    block(ledger, FailureKind.UNREACHABLE, "refused", now_ms - 60_000)
    gate: list[Gate | None] = [None]
    tracker = Tracker(ledger, [], Progress(total=1), endpoint=ENDPOINT, find_gate=lambda: gate[0])
    assert tracker.refresh().trouble == "unreachable: refused (the next attempt is due)"
    gate[0] = shut(FailureKind.UNAUTHORIZED, now_ms + 45_000)
    said = tracker.refresh().trouble or ""
    assert said.startswith("unauthorized (HTTP 401): no job is called until "), said
    block(ledger, FailureKind.UNAUTHORIZED, "no such key", now_ms + 45_000)
    said = tracker.refresh().trouble or ""
    assert re.fullmatch(r"unauthorized \(HTTP 401\): no such key \(until [\d:]+, in 4\d s\)", said), said
    gate[0] = shut(FailureKind.UNAUTHORIZED, now_ms)
    assert (
        tracker.refresh().trouble
        == "unauthorized (HTTP 401): no such key (the next job tests whether it is over)"
    )


def test_a_run_waits_for_nothing_that_is_another_endpoints(ledger: Ledger) -> None:
    elsewhere = "https://another.test"
    block(ledger, FailureKind.QUOTA, "no money left", NOW, endpoint=elsewhere)
    ledger.run(partial(pause, endpoint=elsewhere, reason="moved", now_ms=NOW))
    tracker = Tracker(ledger, [], Progress(total=1), endpoint=ENDPOINT)
    assert tracker.refresh().trouble is None
    ledger.run(partial(pause, endpoint=ENDPOINT, reason=None, now_ms=NOW))
    assert (tracker.refresh().trouble or "").startswith(f"{ENDPOINT} is paused (no reason given)")
