"""Batches and reading on both databases."""

from __future__ import annotations

from schemas.failure import FailureKind
from schemas.job import JobState
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    claim,
    claim_one,
    put,
    put_one,
    record,
    rows,
    setback,
    success,
)
from worker.storage.batch_status import fetch_status
from worker.storage.batches import (
    Batch,
    count_states,
    fetch_batch,
    fetch_batches,
    finish_submission,
    make_batch,
)
from worker.storage.engine import Ledger
from worker.storage.reading import (
    fetch_endings,
    fetch_endings_of,
    fetch_states,
    has_answered,
    iterate_batch_outcomes,
    iterate_outcomes,
)
from worker.storage.workers import rescue_jobs


def make(ledger: Ledger, id_: str, *, key: str | None = None, now_ms: int = NOW, label: str = "l") -> Batch:
    return ledger.run(
        lambda c: make_batch(
            c,
            id_,
            kind="run",
            label=label,
            endpoint=ENDPOINT,
            idempotency_key=key,
            details={"a": [1]},
            now_ms=now_ms,
        )
    )


def test_a_batch_is_made_once_for_its_key(ledger: Ledger) -> None:
    first = make(ledger, "b1", key="k", label="first")
    again = make(ledger, "b2", key="k", label="second")
    assert again == first
    assert (first.label, first.details, first.total, first.submitted_at_ms) == ("first", {"a": [1]}, 0, None)
    assert len(rows(ledger, "batches")) == 1


def test_batches_without_a_key_are_their_own(ledger: Ledger) -> None:
    assert make(ledger, "b1").id == "b1"
    assert make(ledger, "b2", now_ms=NOW + 1).id == "b2"
    with ledger.read() as connection:
        assert [batch.id for batch in fetch_batches(connection)] == ["b2", "b1"]
        assert [batch.id for batch in fetch_batches(connection, limit=1)] == ["b2"]
        assert fetch_batch(connection, "b3") is None


def test_a_batch_counts_its_jobs_failures_and_tokens(ledger: Ledger) -> None:
    batch = make(ledger, "b1")
    ids = [job.id for job in put(ledger, *[a_job(batch_id="b1") for _ in range(4)])]
    put_one(ledger)
    claims = claim(ledger, *ids[:3])
    record(ledger, success(claims[ids[0]]), setback(claims[ids[1]], kind=FailureKind.TIMEOUT))
    with ledger.read() as connection:
        status = fetch_status(connection, batch)
        assert sum(count_states(connection).values()) == 5
    assert status.counts == {
        JobState.SUCCEEDED: 1,
        JobState.FAILED: 1,
        JobState.RUNNING: 1,
        JobState.QUEUED: 1,
    }
    assert status.failures == {"timeout": 1}
    assert (status.prompt_tokens, status.completion_tokens, status.total_tokens) == (3, 4, 7)
    assert status.status == "validating"


def test_a_submission_that_is_finished_twice_has_the_same_total(ledger: Ledger) -> None:
    make(ledger, "b1")
    put(ledger, *[a_job(batch_id="b1") for _ in range(3)])
    assert ledger.run(lambda c: finish_submission(c, "b1", now_ms=NOW)) == 3
    assert ledger.run(lambda c: finish_submission(c, "b1", now_ms=NOW + 1)) == 3
    with ledger.read() as connection:
        batch = fetch_batch(connection, "b1")
        assert batch is not None
        assert fetch_status(connection, batch).status == "in_progress"
    assert (batch.total, batch.submitted_at_ms) == (3, NOW + 1)


def test_outcomes_come_in_input_order_page_by_page(ledger: Ledger) -> None:
    ids = [job.id for job in put(ledger, *[a_job(batch_id="b", position=i) for i in range(1, 1101)])]
    put(ledger, a_job(batch_id="other"))
    for start in range(0, 1100, 500):
        claims = claim(ledger, *ids[start : start + 500])
        record(ledger, *[success(job, answer=job.id) for job in reversed(claims.values())])
    found = list(iterate_batch_outcomes(ledger, "b"))
    assert [job.id for job in found] == ids
    assert [job.position for job in found] == list(range(1, 1101))
    assert all(job.answer == job.id for job in found)


def test_only_what_has_ended_is_an_outcome(ledger: Ledger) -> None:
    done, failed, running = (put_one(ledger, batch_id="b", custom_id=c) for c in "xyz")
    claims = claim(ledger, done, failed, running)
    record(ledger, success(claims[done], raw=b"\x00"), setback(claims[failed], body=b"why", message="m"))
    first, second = iterate_batch_outcomes(ledger, "b")
    assert (first.custom_id, first.state, first.raw, first.failure_kind) == ("x", "succeeded", b"\x00", None)
    assert (
        second.state,
        second.error_raw,
        second.failure_kind,
        second.failure_message,
        second.http_status,
    ) == (
        "failed",
        b"why",
        FailureKind.SERVER_ERROR,
        "m",
        500,
    )
    found = [job.id for job in iterate_outcomes(ledger, [failed, running, "nobody", done])]
    assert found == [failed, done]


def test_a_late_success_carries_no_error_of_before(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger, batch_id="b"))
    ledger.run(lambda c: rescue_jobs(c, "w1", max_solo_losses=3, now_ms=NOW))
    record(ledger, setback(claim_one(ledger, job.id, token="t2"), body=b"why"))
    record(ledger, success(job))
    [outcome] = iterate_batch_outcomes(ledger, "b")
    assert (outcome.state, outcome.error_raw, outcome.raw) == ("succeeded", None, b'{"choices":[]}')


def test_the_tail_of_endings_is_oldest_first_with_the_tokens_of_the_result(ledger: Ledger) -> None:
    ids = [job.id for job in put(ledger, a_job(), a_job(), a_job(), a_job())]
    claims = claim(ledger, *ids)
    record(
        ledger,
        success(claims[ids[0]], ended_at_ms=NOW + 30),
        setback(claims[ids[1]], ended_at_ms=NOW + 20),
        success(claims[ids[2]], ended_at_ms=NOW + 5),
    )
    with ledger.read() as connection:
        tail = fetch_endings(connection, since_ms=NOW + 20)
        assert [(e.id, e.state, e.prompt_tokens, e.failure_kind) for e in tail] == [
            (ids[1], "failed", 0, "server_error"),
            (ids[0], "succeeded", 3, None),
        ]
        assert len(fetch_endings(connection, since_ms=0, limit=2)) == 2
        assert {e.id for e in fetch_endings_of(connection, ids)} == set(ids[:3])
        assert fetch_states(connection, [ids[3], "x"]) == {ids[3]: "running"}


def test_a_result_counted_once_although_two_attempts_were_answered(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    ledger.run(lambda c: rescue_jobs(c, "w1", max_solo_losses=3, now_ms=NOW))
    second = claim_one(ledger, job.id, token="t2", worker="w2")
    record(ledger, success(job))
    record(ledger, success(second))
    with ledger.read() as connection:
        assert len(fetch_endings(connection, since_ms=0)) == 1


def test_an_endpoint_is_proven_by_its_first_result(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    with ledger.read() as connection:
        assert not has_answered(connection, ENDPOINT)
    record(ledger, success(claim_one(ledger, id_)))
    with ledger.read() as connection:
        assert has_answered(connection, ENDPOINT)
        assert not has_answered(connection, "https://other.test")
