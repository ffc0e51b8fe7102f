"""Group commit on both databases: many slots, one writer, one answer each, whatever the database does."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    at_once,
    give_back,
    job_row,
    put,
    put_one,
    rows,
    setback,
    state,
    success,
)
from tests.support.writing import TroubledLedger, claimed, in_background, in_one_group, wait_for_pending
from worker.storage.due import take_due
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway
from worker.storage.outcomes import Recorded
from worker.storage.workers import release_orphans
from worker.storage.writer import GroupWriter


def test_many_slots_at_once_each_get_one_job_one_record_and_one_result(
    ledger: Ledger, writer: GroupWriter
) -> None:
    ids = [job.id for job in put(ledger, *[a_job() for _ in range(320)])]

    def slot(i: int) -> list[Recorded]:
        mine = [claimed(writer, id_) for id_ in ids[i * 10 : i * 10 + 10]]
        return [writer.record(success(job, answer=job.id)) for job in mine]

    assert {what for answer in at_once(32, slot) for what in answer} == {Recorded.APPLIED}
    assert writer.open_claims == {}
    assert {row.claims for row in rows(ledger, "jobs")} == {1}
    assert all(row.answer == row.job_id for row in rows(ledger, "results"))
    assert len(rows(ledger, "results")) == 320


def test_five_deliveries_of_one_job_are_one_claim(ledger: Ledger, writer: GroupWriter) -> None:
    id_ = put_one(ledger)
    answers = at_once(5, lambda i: writer.claim(id_))
    assert sum(job is not None for job in answers) == 1
    assert writer.claim(id_) is None
    assert job_row(ledger, id_).claims == 1


def test_a_claim_whose_commit_was_not_answered_succeeds_once(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    id_ = put_one(ledger)
    troubled.silent_commits = 1
    job = claimed(writer, id_)
    assert (job.number, job_row(ledger, id_).claims) == (1, 1)
    assert writer.open_claims == {id_: job.token}
    assert writer.record(success(job)) is Recorded.APPLIED


def test_a_record_whose_commit_was_not_answered_is_recorded_once(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    job = claimed(writer, put_one(ledger))
    troubled.silent_commits = 1
    assert writer.record(success(job)) is Recorded.REPEATED
    assert len(rows(ledger, "results")) == 1
    assert writer.open_claims == {}


def test_a_wait_whose_commit_was_not_answered_burns_one_attempt(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    job = claimed(writer, put_one(ledger))
    troubled.silent_commits = 1
    writer.record(setback(job, not_before_ms=NOW + 9))
    row = job_row(ledger, job.id)
    assert (row.state, row.attempts) == ("waiting", 1)
    assert writer.open_claims == {}


def test_a_row_that_cannot_be_stored_costs_its_neighbours_nothing(
    ledger: Ledger, writer: GroupWriter
) -> None:
    jobs = [claimed(writer, put_one(ledger)) for _ in range(12)]

    def slot(i: int) -> Any:
        poison = object() if i == 7 else "fine"  # nothing that a driver can bind
        try:
            return writer.record(success(jobs[i], finish_reason=None, raw=poison if i == 7 else b"r"))
        except Exception as exc:
            return exc

    answers = at_once(12, slot)
    assert isinstance(answers[7], Exception)
    assert [what for i, what in enumerate(answers) if i != 7] == [Recorded.APPLIED] * 11
    assert state(ledger, jobs[7].id) == "running"
    assert claimed(writer, put_one(ledger))


def test_the_writer_lives_on_when_a_second_try_meets_another_error(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    id_ = put_one(ledger)
    troubled.failures_before = [
        DatabaseAway("a connection broke"),
        RuntimeError("a row that cannot be stored"),
    ]
    answer = in_background(lambda: writer.claim(id_))()
    assert isinstance(answer, RuntimeError)
    assert claimed(writer, id_)


def test_what_is_pending_is_written_before_the_writer_ends(
    ledger: Ledger, troubled: TroubledLedger, clock: FakeClock
) -> None:
    first = GroupWriter(troubled, worker_id="w1", endpoint=ENDPOINT, clock=clock, window_s=0.0)  # type: ignore[arg-type]
    first.start()
    job = claimed(first, put_one(ledger))
    with in_one_group(first):
        late = in_background(lambda: first.record(success(job)))
        wait_for_pending(first, 1)
        first._stopping.set()
    assert late() is Recorded.APPLIED
    assert first.stop(10)


def test_a_beat_in_the_same_group_takes_no_fresh_claim_for_an_orphan(
    ledger: Ledger, writer: GroupWriter
) -> None:
    old = claimed(writer, put_one(ledger))
    id_ = put_one(ledger)

    def beat(connection: Connection) -> list[str]:
        return release_orphans(connection, "w1", open_claims=writer.open_claims, now_ms=NOW)

    with in_one_group(writer):
        claiming = in_background(lambda: writer.claim(id_))
        beating = in_background(lambda: writer.call(beat))
        wait_for_pending(writer, 2)
    job = claiming()
    assert beating() == []
    assert state(ledger, id_) == state(ledger, old.id) == "running"
    assert writer.record(success(job)) is Recorded.APPLIED


def test_a_forgotten_claim_is_released_by_the_next_beat(ledger: Ledger, writer: GroupWriter) -> None:
    job = claimed(writer, put_one(ledger))
    writer.forget(job.id)
    released = writer.call(lambda c: release_orphans(c, "w1", open_claims=writer.open_claims, now_ms=NOW))
    assert released == [job.id]


def test_a_job_given_back_can_be_claimed_again_by_the_same_process(
    ledger: Ledger, writer: GroupWriter
) -> None:
    id_ = put_one(ledger)
    writer.record(give_back(claimed(writer, id_)))
    assert claimed(writer, id_).number == 2


def test_a_message_given_back_makes_the_job_the_relays_again(ledger: Ledger, writer: GroupWriter) -> None:
    id_ = put_one(ledger)
    ledger.run(lambda c: take_due(c, ENDPOINT, room=1, now_ms=NOW))
    writer.give_message_back(id_)
    writer.call(lambda c: None)
    assert job_row(ledger, id_).published_at_ms is None
