"""Records on both databases: one result at most, the first success wins, all else is fenced by the token."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from schemas.failure import FailureKind
from tests.support.ledger import (
    NOW,
    a_claim,
    claim_one,
    give_back,
    job_row,
    put_one,
    record,
    rows,
    setback,
    state,
    success,
    with_token,
)
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_jobs, expire_jobs, retry_jobs
from worker.storage.outcomes import ClaimedJob, Recorded, Usage
from worker.storage.workers import rescue_jobs


def test_a_success_is_kept_with_its_result_attempt_and_usage(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger, batch_id="b"))
    assert record(ledger, success(job, reasoning="hm", raw=b"\xff\x00raw")) == [Recorded.APPLIED]
    row = job_row(ledger, job.id)
    assert (row.state, row.http_status, row.request_id, row.ended_at_ms) == (
        "succeeded",
        200,
        "req-1",
        NOW + 10,
    )
    [result] = rows(ledger, "results")
    assert (result.answer, result.reasoning, bytes(result.raw), result.number) == (
        "Hello",
        "hm",
        b"\xff\x00raw",
        1,
    )
    [attempt] = rows(ledger, "attempts")
    assert (attempt.outcome, attempt.number, attempt.latency_ms, attempt.worker_id) == (
        "succeeded",
        1,
        7,
        "w1",
    )
    [usage] = rows(ledger, "usage")
    assert (usage.batch_id, usage.prompt_tokens, usage.total_tokens, usage.is_used) == ("b", 3, 7, True)
    assert (usage.cached_tokens, usage.reasoning_tokens) == (1, 2)


def test_the_same_success_twice_is_one(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    assert record(ledger, success(job)) == [Recorded.APPLIED]
    assert record(ledger, success(job)) == [Recorded.REPEATED]
    assert len(rows(ledger, "results")) == len(rows(ledger, "usage")) == len(rows(ledger, "attempts")) == 1


def test_an_outcome_of_an_unknown_job_is_nobodys(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    stranger = success(a_claim("nobody"))
    assert record(ledger, stranger, success(job)) == [Recorded.CLAIM_LOST, Recorded.APPLIED]


def _queued(ledger: Ledger, job: ClaimedJob) -> None:
    ledger.run(lambda c: rescue_jobs(c, "w1", max_solo_losses=3, now_ms=NOW))


def _waiting(ledger: Ledger, job: ClaimedJob) -> None:
    _queued(ledger, job)
    record(ledger, setback(claim_one(ledger, job.id, token="t2", worker="w2"), not_before_ms=NOW + 99))


def _failed(ledger: Ledger, job: ClaimedJob) -> None:
    _queued(ledger, job)
    record(ledger, setback(claim_one(ledger, job.id, token="t2", worker="w2"), body=b"err"))


def _cancelled(ledger: Ledger, job: ClaimedJob) -> None:
    _queued(ledger, job)
    ledger.run(lambda c: cancel_jobs(c, [job.id], now_ms=NOW))


def _expired(ledger: Ledger, job: ClaimedJob) -> None:
    _queued(ledger, job)
    ledger.run(lambda c: expire_jobs(c, now_ms=NOW + 10_000))


def _running(ledger: Ledger, job: ClaimedJob) -> None:
    _queued(ledger, job)
    claim_one(ledger, job.id, token="t2", worker="w2")


def _retried(ledger: Ledger, job: ClaimedJob) -> None:
    _failed(ledger, job)
    ledger.run(lambda c: retry_jobs(c, [job.id], now_ms=NOW))


@pytest.mark.parametrize(
    ("became", "expected"),
    [
        (_queued, "queued"),
        (_waiting, "waiting"),
        (_failed, "failed"),
        (_cancelled, "cancelled"),
        (_expired, "expired"),
        (_running, "running"),
        (_retried, "queued"),
    ],
)
def test_a_late_success_wins_whatever_the_job_became_meanwhile(
    ledger: Ledger, became: Callable[[Ledger, ClaimedJob], None], expected: str
) -> None:
    job = claim_one(ledger, put_one(ledger, expires_at_ms=NOW + 5_000))
    became(ledger, job)
    assert state(ledger, job.id) == expected
    assert record(ledger, success(job)) == [Recorded.APPLIED]
    row = job_row(ledger, job.id)
    assert (row.state, row.failure_kind, row.not_before_ms, row.published_at_ms) == (
        "succeeded",
        None,
        None,
        None,
    )
    assert [a.outcome for a in rows(ledger, "attempts", number=1)] == ["succeeded"]
    assert len(rows(ledger, "results")) == 1


def test_a_second_success_keeps_its_usage_and_nothing_else(ledger: Ledger) -> None:
    first = claim_one(ledger, put_one(ledger))
    _queued(ledger, first)
    second = claim_one(ledger, first.id, token="t2", worker="w2")
    assert record(ledger, success(first, answer="first")) == [Recorded.APPLIED]
    late = success(second, answer="second", worker="w2")
    assert record(ledger, late) == [Recorded.UNUSED]
    assert record(ledger, late) == [Recorded.UNUSED]
    assert record(ledger, success(first, answer="first")) == [Recorded.REPEATED]
    assert [r.answer for r in rows(ledger, "results")] == ["first"]
    assert [(u.number, u.is_used) for u in rows(ledger, "usage")] == [(1, True), (2, False)]
    assert [(a.number, a.outcome) for a in rows(ledger, "attempts")] == [(1, "succeeded"), (2, "unused")]


def test_a_failure_counts_only_from_the_holder_of_the_claim(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    assert record(ledger, with_token(setback(job), "other")) == [Recorded.CLAIM_LOST]
    assert record(ledger, with_token(give_back(job), "other")) == [Recorded.CLAIM_LOST]
    assert state(ledger, job.id) == "running"
    _running(ledger, job)
    assert record(ledger, setback(job)) == [Recorded.CLAIM_LOST]
    row = job_row(ledger, job.id)
    assert (row.state, row.claim_token, row.attempts) == ("running", "t2", 0)
    assert [a.outcome for a in rows(ledger, "attempts")] == ["lost"]


def test_a_failure_after_the_success_of_another_changes_nothing(ledger: Ledger) -> None:
    first = claim_one(ledger, put_one(ledger))
    _queued(ledger, first)
    second = claim_one(ledger, first.id, token="t2", worker="w2")
    record(ledger, success(first))
    assert record(ledger, setback(second)) == [Recorded.CLAIM_LOST]
    assert state(ledger, first.id) == "succeeded"


def test_a_failed_job_says_why(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    record(
        ledger,
        setback(job, kind=FailureKind.REJECTED, message="bad", http_status=422, request_id="r", body=b"{}"),
    )
    row = job_row(ledger, job.id)
    assert (row.state, row.failure_kind, row.http_status, row.request_id, row.failure_message) == (
        "failed",
        "rejected",
        422,
        "r",
        "bad",
    )
    assert row.attempts == 1
    assert [bytes(b.raw) for b in rows(ledger, "failure_bodies")] == [b"{}"]
    [attempt] = rows(ledger, "attempts")
    assert (attempt.outcome, attempt.message, attempt.latency_ms) == ("rejected", "bad", 5)


def test_a_wait_keeps_its_time_its_reason_and_what_was_burnt(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    job = claim_one(ledger, id_)
    record(ledger, setback(job, not_before_ms=NOW + 500, body=b"x"))
    row = job_row(ledger, id_)
    assert (row.state, row.not_before_ms, row.attempts, row.failure_kind, row.ended_at_ms) == (
        "waiting",
        NOW + 500,
        1,
        "server_error",
        None,
    )
    assert (row.worker_id, row.claim_token, row.published_at_ms) == (None, None, None)
    assert rows(ledger, "failure_bodies") == []


def test_a_wait_that_burns_nothing_leaves_the_budget_alone(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    record(ledger, setback(job, not_before_ms=NOW + 500, burns=False))
    assert job_row(ledger, job.id).attempts == 0


def test_the_first_moment_at_a_shut_gate_is_kept_until_something_else_happens(ledger: Ledger) -> None:
    from worker.storage.due import take_due  # local: only to make the job claimable again

    id_ = put_one(ledger)

    def again(token: str, now_ms: int, **how: object) -> None:
        ledger.run(lambda c: take_due(c, "https://endpoint.test", room=5, now_ms=now_ms))
        job = claim_one(ledger, id_, token=token, now_ms=now_ms)
        record(ledger, setback(job, not_before_ms=now_ms + 1, ended_at_ms=now_ms, **how))  # type: ignore[arg-type]

    again("a", NOW, is_blocked=True, burns=False)
    again("b", NOW + 50, is_blocked=True, burns=False)
    assert job_row(ledger, id_).blocked_since_ms == NOW
    ledger.run(lambda c: take_due(c, "https://endpoint.test", room=5, now_ms=NOW + 60))
    job = claim_one(ledger, id_, token="c", now_ms=NOW + 60)
    assert job.blocked_since_ms == NOW
    record(ledger, give_back(job))
    assert job_row(ledger, id_).blocked_since_ms == NOW
    again("d", NOW + 90)
    assert job_row(ledger, id_).blocked_since_ms is None


def test_a_zero_is_a_moment_as_well(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    record(ledger, setback(claim_one(ledger, id_, now_ms=0), not_before_ms=0, is_blocked=True, ended_at_ms=0))
    row = job_row(ledger, id_)
    assert (row.state, row.not_before_ms, row.blocked_since_ms) == ("waiting", 0, 0)


def test_a_job_given_back_is_queued_and_unburnt(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    assert record(ledger, give_back(job)) == [Recorded.APPLIED]
    row = job_row(ledger, job.id)
    assert (row.state, row.attempts, row.worker_id, row.claim_token, row.published_at_ms) == (
        "queued",
        0,
        None,
        None,
        None,
    )
    assert [a.outcome for a in rows(ledger, "attempts")] == ["released"]


def test_a_job_given_back_without_a_call_is_as_if_it_had_never_been_claimed(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    before = job_row(ledger, id_)
    assert record(ledger, give_back(claim_one(ledger, id_), was_called=False)) == [Recorded.APPLIED]
    after = job_row(ledger, id_)
    assert {**after._mapping, "claimed_at_ms": None} == dict(before._mapping)
    assert rows(ledger, "attempts") == []
    again = claim_one(ledger, id_, token="t2")
    assert again.number == 1
    record(ledger, setback(again, not_before_ms=None))
    assert [(one.number, one.outcome) for one in rows(ledger, "attempts")] == [(1, "server_error")]


def test_a_claim_that_was_lost_takes_no_number_back(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    lost = claim_one(ledger, id_, token="t1")
    record(ledger, give_back(lost))
    claim_one(ledger, id_, token="t2")
    assert record(ledger, give_back(lost, was_called=False)) == [Recorded.CLAIM_LOST]
    assert job_row(ledger, id_).claims == 2


@pytest.mark.parametrize("how", ["wait", "fail", "give back"])
def test_a_running_job_that_was_asked_to_stop_is_cancelled_when_its_call_ends(
    ledger: Ledger, how: str
) -> None:
    job = claim_one(ledger, put_one(ledger))
    assert ledger.run(lambda c: cancel_jobs(c, [job.id], now_ms=NOW)) == 1
    assert state(ledger, job.id) == "running"
    outcome = {
        "wait": setback(job, not_before_ms=NOW + 9),
        "fail": setback(job),
        "give back": give_back(job),
    }[how]
    assert record(ledger, outcome) == [Recorded.APPLIED]
    row = job_row(ledger, job.id)
    assert (row.state, row.ended_at_ms, row.not_before_ms) == ("cancelled", NOW + 10, None)


def test_a_paid_result_is_kept_although_the_job_was_asked_to_stop(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    ledger.run(lambda c: cancel_jobs(c, [job.id], now_ms=NOW))
    assert record(ledger, success(job)) == [Recorded.APPLIED]
    assert state(ledger, job.id) == "succeeded"


@pytest.mark.parametrize(("expires_at_ms", "expected"), [(NOW + 500, "expired"), (NOW + 501, "waiting")])
def test_a_wait_beyond_the_jobs_time_ends_it(ledger: Ledger, expires_at_ms: int, expected: str) -> None:
    job = claim_one(ledger, put_one(ledger, expires_at_ms=expires_at_ms))
    record(ledger, setback(job, not_before_ms=NOW + 500))
    assert state(ledger, job.id) == expected


def test_odd_text_is_cleaned_and_its_neighbours_are_recorded(ledger: Ledger) -> None:
    odd = "a\x00b\ud800c\udfff"
    jobs = [claim_one(ledger, put_one(ledger)) for _ in range(3)]
    outcomes = [
        success(
            jobs[0], answer=odd, reasoning=odd, finish_reason=odd, request_id=odd, usage=Usage(odd, 1, 1, 2)
        ),
        setback(jobs[1], message=odd, request_id=odd),
        success(jobs[2], answer="fine"),
    ]
    assert record(ledger, *outcomes) == [Recorded.APPLIED] * 3
    clean = "a�b�c�"
    result = rows(ledger, "results", job_id=jobs[0].id)[0]
    assert (result.answer, result.reasoning, result.finish_reason, result.request_id) == (clean,) * 4
    assert rows(ledger, "usage", job_id=jobs[0].id)[0].model == clean
    assert job_row(ledger, jobs[1].id).failure_message == clean
    assert rows(ledger, "results", job_id=jobs[2].id)[0].answer == "fine"


def test_a_senseless_token_count_costs_no_paid_answer(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    assert record(ledger, success(job, usage=Usage("m", 2**52, 2**52, 2**53, 2**40, 2**40))) == [
        Recorded.APPLIED
    ]
    assert len(rows(ledger, "results")) == len(rows(ledger, "usage")) == 1


def test_a_group_of_outcomes_of_all_kinds_is_recorded_in_the_order_given(ledger: Ledger) -> None:
    jobs = [claim_one(ledger, put_one(ledger)) for _ in range(4)]
    outcomes = [
        give_back(jobs[3]),
        success(jobs[0]),
        with_token(setback(jobs[2]), "other"),
        setback(jobs[1], not_before_ms=NOW + 1),
    ]
    assert record(ledger, *outcomes) == [
        Recorded.APPLIED,
        Recorded.APPLIED,
        Recorded.CLAIM_LOST,
        Recorded.APPLIED,
    ]
    assert [state(ledger, job.id) for job in jobs] == ["succeeded", "waiting", "running", "queued"]


def test_no_outcomes_are_nothing(ledger: Ledger) -> None:
    assert record(ledger) == []
