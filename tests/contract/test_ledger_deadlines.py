"""After its deadline no job of a batch is called, wherever it is; on both databases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import update

from schemas.job import JobState
from tests.support.ahead import Row
from tests.support.house import House
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    claim,
    claim_one,
    job_row,
    put,
    put_one,
    record,
    setback,
    state,
)
from worker.attempt.report import Verdict
from worker.attempt.slots import Slots
from worker.clock import SystemClock
from worker.operations.deadlines import apply_deadline, note_batch_deadline
from worker.operations.retry import retry
from worker.storage.batches import Batch, fetch_batch, make_batch
from worker.storage.engine import Ledger
from worker.storage.moves import expire_jobs
from worker.storage.tables import jobs


def a_batch(ledger: Ledger, id_: str = "b") -> Batch:
    return ledger.run(
        partial(
            make_batch,
            batch_id=id_,
            kind="submit",
            label=id_,
            endpoint=ENDPOINT,
            idempotency_key=None,
            now_ms=NOW,
        )
    )


def test_a_job_whose_deadline_comes_while_it_waits_for_its_slot_is_never_called(
    build: Callable[..., House],
) -> None:
    house = build(slots=Slots(1, 1, ahead=2))
    row = Row(house, jobs=3, expires_at_ms=NOW + 500)
    house.clock.advance(0.5)  # a claim that is younger than a second is not looked up in the ledger
    first, *others = row.end()
    assert first is Verdict.SUCCEEDED, "a call in flight is paid for"
    assert others == [Verdict.NOT_ADMITTED] * 2
    assert row.endpoint.called == row.ids[:1]
    assert not house.writer.open_claims
    house.ledger.run(partial(expire_jobs, now_ms=house.clock.now_ms()))
    assert row.states() == ["succeeded", "expired", "expired"]
    assert job_row(house.ledger, row.ids[1]).claims == 0


def wait_for_the_key(house: House, seconds: float, *, then: Callable[[], object] = lambda: None) -> list[str]:
    """A command that prints the key takes so long from now on; the jobs that are called."""
    called: list[str] = []
    fetch_names, complete = house.credentials.fetch_names, house.client.complete

    def slow() -> Any:
        house.clock.advance(seconds)
        then()
        return fetch_names()

    def call(body: bytes, *, job_id: str, **options: Any) -> Any:
        called.append(job_id)
        return complete(body, job_id=job_id, **options)

    house.credentials.fetch_names = slow  # type: ignore[method-assign]
    house.client.complete = call  # type: ignore[method-assign]
    return called


def test_a_job_whose_deadline_comes_while_its_key_is_fetched_is_never_called(
    build: Callable[..., House],
) -> None:
    house = build()
    called = wait_for_the_key(house, 3.0)
    id_ = house.put(expires_at_ms=house.clock.now_ms() + 2500)
    assert house.execute(id_) is Verdict.NOT_ADMITTED
    assert called == [] and not house.writer.open_claims
    assert job_row(house.ledger, id_).claims == 0
    house.ledger.run(partial(expire_jobs, now_ms=house.clock.now_ms()))
    assert state(house.ledger, id_) == "expired"


def test_a_job_that_another_worker_has_claimed_while_its_key_was_fetched_is_not_called_here(
    build: Callable[..., House],
) -> None:
    house = build()
    ids: list[str] = []

    def lose() -> None:
        house.ledger.run(lambda c: c.execute(update(jobs).where(jobs.c.id == ids[0]).values(claim_token="x")))

    called = wait_for_the_key(house, 3.0, then=lose)
    ids.append(house.put())
    assert house.execute(ids[0]) is Verdict.NOT_ADMITTED
    assert called == []


def test_a_job_whose_deadline_comes_as_its_key_is_refused_is_not_called_with_another_key(
    build: Callable[..., House],
) -> None:
    house = build(simulated={"key": "sk-b"}, api_keys="sk-a,sk-b", auth_style="bearer")
    called = wait_for_the_key(house, 0.0)
    complete = house.client.complete

    def slow(body: bytes, **options: Any) -> Any:
        house.clock.advance(3.0)
        return complete(body, **options)

    house.client.complete = slow  # type: ignore[method-assign]
    id_ = house.put(expires_at_ms=house.clock.now_ms() + 2500)
    assert house.execute(id_) is Verdict.NOT_ADMITTED
    assert called == [id_]
    row = job_row(house.ledger, id_)
    assert (row.attempts, row.claims) == (0, 1)
    other = house.put()
    assert house.execute(other) is Verdict.SUCCEEDED, "only the key that was refused is set aside"
    assert called == [id_, other]


def test_a_retry_that_would_be_due_after_the_deadline_expires_at_once(ledger: Ledger) -> None:
    early, late = put(ledger, a_job(expires_at_ms=NOW + 5_000), a_job(expires_at_ms=NOW + 5_000))
    jobs = claim(ledger, early.id, late.id)
    record(ledger, setback(jobs[early.id], not_before_ms=NOW + 4_999))
    record(ledger, setback(jobs[late.id], not_before_ms=NOW + 5_000))
    assert (state(ledger, early.id), state(ledger, late.id)) == ("waiting", "expired")


def test_a_deadline_moves_all_open_jobs_of_its_batch_and_no_others(ledger: Ledger) -> None:
    batch = a_batch(ledger)
    now_ms = SystemClock().now_ms()
    ours = [job.id for job in put(ledger, *[a_job(batch_id="b", position=i) for i in range(1, 1203)])]
    other = put_one(ledger, batch_id="c")
    ended = claim_one(ledger, ours[0])
    record(ledger, setback(ended))
    batch = note_batch_deadline(ledger, batch, now_ms + 60_000)
    apply_deadline(ledger, batch)
    assert {job_row(ledger, id_).expires_at_ms for id_ in ours[1:]} == {now_ms + 60_000}
    assert job_row(ledger, ours[0]).expires_at_ms is None
    assert job_row(ledger, other).expires_at_ms is None
    with ledger.read() as connection:
        found = fetch_batch(connection, "b")
    assert found is not None and found.deadline_ms == now_ms + 60_000
    apply_deadline(ledger, note_batch_deadline(ledger, batch, now_ms + 120_000))
    assert job_row(ledger, ours[-1]).expires_at_ms == now_ms + 120_000


def test_a_deadline_that_is_over_does_not_hold_for_what_is_written_down_later(ledger: Ledger) -> None:
    batch = note_batch_deadline(ledger, a_batch(ledger), SystemClock().now_ms() + 60_000)
    assert note_batch_deadline(ledger, batch, None) == batch
    over = note_batch_deadline(ledger, batch, SystemClock().now_ms() - 1)
    assert note_batch_deadline(ledger, over, None).deadline_ms is None
    with ledger.read() as connection:
        found = fetch_batch(connection, "b")
    assert found is not None and found.deadline_ms is None


@pytest.mark.parametrize("deadline_ms", [None, NOW])
def test_a_batch_without_a_deadline_or_whose_deadline_is_over_changes_no_job(
    ledger: Ledger, deadline_ms: int | None
) -> None:
    batch = a_batch(ledger)
    id_ = put_one(ledger, batch_id="b")
    apply_deadline(ledger, note_batch_deadline(ledger, batch, deadline_ms))
    assert job_row(ledger, id_).expires_at_ms is None


def test_open_jobs_of_a_batch_whose_deadline_is_over_go_on_without_one(ledger: Ledger) -> None:
    """No worker lived to expire them. Without this the same command would queue them only to see them expire."""
    batch, over_ms = a_batch(ledger), SystemClock().now_ms() - 1
    ours = [
        job.id
        for job in put(
            ledger, *[a_job(batch_id="b", position=i, expires_at_ms=over_ms) for i in range(1, 603)]
        )
    ]
    own, other = (
        put_one(ledger, batch_id="b", expires_at_ms=over_ms - 5),
        put_one(ledger, batch_id="c", expires_at_ms=over_ms),
    )
    note_batch_deadline(ledger, note_batch_deadline(ledger, batch, over_ms), None)
    assert {job_row(ledger, id_).expires_at_ms for id_ in ours} == {None}
    assert job_row(ledger, own).expires_at_ms == over_ms - 5, "its own, not the batch's"
    assert job_row(ledger, other).expires_at_ms == over_ms


def test_jobs_that_are_queued_again_before_the_deadline_of_their_batch_have_it(ledger: Ledger) -> None:
    now_ms = SystemClock().now_ms()
    batch = note_batch_deadline(ledger, a_batch(ledger), now_ms + 60_000)
    for deadline_ms, expected in ((now_ms + 60_000, now_ms + 60_000), (now_ms - 1, None), (None, None)):
        failed = put_one(ledger, batch_id="b", expires_at_ms=now_ms + 60_000)
        record(ledger, setback(claim_one(ledger, failed, token=failed)))
        batch = note_batch_deadline(ledger, batch, deadline_ms)
        assert retry(ledger, batch, states=[JobState.FAILED], kinds=[]).queued == 1
        assert job_row(ledger, failed).expires_at_ms == expected


def test_a_batch_has_no_deadline_any_more_once_jobs_are_queued_again_after_it(ledger: Ledger) -> None:
    batch = note_batch_deadline(ledger, a_batch(ledger), SystemClock().now_ms() - 1)

    def deadline_ms() -> int | None:
        with ledger.read() as connection:
            found = fetch_batch(connection, "b")
        assert found is not None
        return found.deadline_ms

    assert retry(ledger, batch, states=[JobState.FAILED], kinds=[]).queued == 0
    assert deadline_ms() == batch.deadline_ms, "nothing goes on"
    record(ledger, setback(claim_one(ledger, put_one(ledger, batch_id="b"), token="t")))
    assert retry(ledger, batch, states=[JobState.FAILED], kinds=[]).queued == 1
    assert deadline_ms() is None
