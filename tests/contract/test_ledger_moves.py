"""Retry, cancel, expire, on both databases."""

from __future__ import annotations

from schemas.failure import FailureKind
from schemas.job import JobState
from tests.support.ledger import (
    NOW,
    a_job,
    claim_one,
    job_row,
    put,
    put_one,
    record,
    rows,
    setback,
    state,
    success,
)
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_jobs, expire_jobs, retry_batch, retry_jobs


def _end(ledger: Ledger, how: str, **facts: object) -> str:
    id_ = put_one(ledger, **facts)
    if how == "cancelled":
        ledger.run(lambda c: cancel_jobs(c, [id_], now_ms=NOW))
    elif how == "expired":
        ledger.run(lambda c: expire_jobs(c, now_ms=NOW + 10_000))
    elif how in ("succeeded", "failed"):
        job = claim_one(ledger, id_)
        record(ledger, success(job) if how == "succeeded" else setback(job, body=b"e"))
    elif how == "waiting":
        record(ledger, setback(claim_one(ledger, id_), not_before_ms=NOW + 99))
    elif how == "running":
        claim_one(ledger, id_)
    assert state(ledger, id_) == how
    return id_


def test_only_what_ended_without_a_success_is_retried(ledger: Ledger) -> None:
    by_state = {
        how: _end(ledger, how, **({"expires_at_ms": NOW + 10} if how == "expired" else {}))
        for how in ("expired", "cancelled", "failed", "succeeded", "waiting", "running", "queued")
    }
    again = ledger.run(lambda c: retry_jobs(c, list(by_state.values()), now_ms=NOW))
    assert set(again) == {by_state[how] for how in ("expired", "cancelled", "failed")}
    for how in ("succeeded", "waiting", "running", "queued"):
        assert state(ledger, by_state[how]) == how
        assert job_row(ledger, by_state[how]).generation == 1


def test_a_retried_job_begins_anew_as_the_next_generation(ledger: Ledger) -> None:
    id_ = _end(ledger, "failed", expires_at_ms=NOW + 50)
    ledger.run(lambda c: retry_jobs(c, [id_], now_ms=NOW))
    row = job_row(ledger, id_)
    assert (row.state, row.generation, row.attempts, row.losses, row.failure_kind, row.ended_at_ms) == (
        "queued",
        2,
        0,
        0,
        None,
        None,
    )
    assert row.expires_at_ms is None
    assert rows(ledger, "failure_bodies") == []
    job = claim_one(ledger, id_, token="t9")
    assert (job.number, job.claim.generation, job.burnt) == (2, 2, 0)


def test_a_retried_job_that_was_asked_to_stop_is_asked_no_more(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    ledger.run(lambda c: cancel_jobs(c, [job.id], now_ms=NOW))
    record(ledger, setback(job))
    ledger.run(lambda c: retry_jobs(c, [job.id], now_ms=NOW))
    record(ledger, setback(claim_one(ledger, job.id, token="t2"), not_before_ms=NOW + 50))
    assert state(ledger, job.id) == "waiting"


def test_a_batchs_failures_are_retried_by_state_and_kind(ledger: Ledger) -> None:
    ids = [job.id for job in put(ledger, *[a_job(batch_id="b") for _ in range(3)], a_job(batch_id="c"))]
    kinds = [FailureKind.TIMEOUT, FailureKind.REJECTED, FailureKind.TIMEOUT, FailureKind.TIMEOUT]
    for i, (id_, kind) in enumerate(zip(ids, kinds, strict=True)):
        record(ledger, setback(claim_one(ledger, id_, token=f"t{i}"), kind=kind))

    def retry(**how: object) -> list[str]:
        return ledger.run(lambda c: retry_batch(c, "b", states=[JobState.FAILED], now_ms=NOW, **how))  # type: ignore[arg-type]

    assert sorted(retry(kinds=["timeout"])) == sorted([ids[0], ids[2]])
    assert retry() == [ids[1]]
    assert retry() == []
    assert state(ledger, ids[3]) == "failed"


def test_a_succeeded_job_is_not_retried_even_when_asked_by_state(ledger: Ledger) -> None:
    _end(ledger, "succeeded", batch_id="b")
    states = [JobState.SUCCEEDED, JobState.RUNNING]
    assert ledger.run(lambda c: retry_batch(c, "b", states=states, now_ms=NOW)) == []


def test_cancel_ends_what_waits_and_asks_what_runs(ledger: Ledger) -> None:
    queued, waiting = _end(ledger, "queued"), _end(ledger, "waiting")
    running, ended = _end(ledger, "running"), _end(ledger, "succeeded")
    count = ledger.run(lambda c: cancel_jobs(c, [queued, waiting, running, ended, "nobody"], now_ms=NOW))
    assert count == 3
    assert [state(ledger, id_) for id_ in (queued, waiting, running, ended)] == [
        "cancelled",
        "cancelled",
        "running",
        "succeeded",
    ]
    assert job_row(ledger, running).is_cancel_requested
    assert job_row(ledger, waiting).not_before_ms is None
    assert job_row(ledger, queued).ended_at_ms == NOW


def test_only_what_waits_expires_and_only_when_its_time_is_over(ledger: Ledger) -> None:
    due = put_one(ledger, expires_at_ms=NOW)
    later, never = put_one(ledger, expires_at_ms=NOW + 1), put_one(ledger)
    running = put_one(ledger, expires_at_ms=NOW)
    claim_one(ledger, running, now_ms=NOW - 1)
    assert ledger.run(lambda c: expire_jobs(c, now_ms=NOW)) == 1
    assert [state(ledger, id_) for id_ in (due, later, never, running)] == [
        "expired",
        "queued",
        "queued",
        "running",
    ]
    assert job_row(ledger, due).ended_at_ms == NOW


def test_many_jobs_expire_five_hundred_at_a_time(ledger: Ledger) -> None:
    put(ledger, *[a_job(expires_at_ms=NOW) for _ in range(501)])
    counts = [ledger.run(lambda c: expire_jobs(c, now_ms=NOW)) for _ in range(3)]
    assert counts == [500, 1, 0]
