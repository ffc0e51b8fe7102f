"""Requests to the group writer that nobody waits for, and messages that become rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from schemas.job import JobState
from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    put_one,
    rows,
    setback,
    state,
    success,
)
from tests.support.processes import wait_until
from tests.support.writing import Told, TroubledLedger, claimed, in_background, in_one_group, wait_for_pending
from worker.storage.engine import Ledger
from worker.storage.errors import WriterStopped
from worker.storage.outcomes import Recorded
from worker.storage.writer import GroupWriter


def test_a_claim_and_a_record_can_be_asked_for_without_waiting(ledger: Ledger, writer: GroupWriter) -> None:
    id_ = put_one(ledger)
    claiming, recording, nothing = Told(), Told(), Told()
    writer.begin_claim(id_, claiming)
    assert claiming.is_told.wait(10)
    [job] = claiming.results
    assert writer.open_claims == {id_: job.token}
    writer.begin_record(success(job), recording, is_urgent=True)
    assert recording.is_told.wait(10)
    assert recording.results == [Recorded.APPLIED]
    writer.begin_claim(id_, nothing)
    assert nothing.is_told.wait(10)
    assert nothing.results == [None]
    assert claiming.threads | recording.threads == {"antrean-writer"}
    assert writer.stop(10)
    for begin in (partial(writer.begin_claim, id_), partial(writer.begin_record, success(job))):
        with pytest.raises(WriterStopped):
            begin(Told())


class Broken(Told):
    """An answer that raises."""

    def set_result(self, value: Any) -> None:
        super().set_result(value)
        raise LookupError("a defect of the caller")


def test_an_answer_that_raises_ends_the_writer_and_writes_nothing_twice(
    ledger: Ledger, clock: FakeClock
) -> None:
    died: list[BaseException] = []
    writer = GroupWriter(
        ledger, worker_id="w1", endpoint=ENDPOINT, clock=clock, window_s=0.0, on_death=died.append
    )
    writer.start()
    job, ids, broken, other = (
        claimed(writer, put_one(ledger)),
        [put_one(ledger), put_one(ledger)],
        Broken(),
        Told(),
    )
    with in_one_group(writer):
        writer.begin_record(setback(job, not_before_ms=NOW + 9), Broken())
        writer.begin_claim(ids[0], broken)
        writer.begin_claim(ids[1], other)
    wait_until(lambda: died, within_s=10, what="the writer has ended")
    assert [type(exc) for exc in died] == [LookupError]
    assert [type(exc) for exc in other.errors] == [WriterStopped]
    assert None not in broken.results, "its claim is committed: it is no second delivery"
    assert [(row.state, row.attempts) for row in rows(ledger, "jobs", id=job.id)] == [("waiting", 1)]


def test_a_message_with_its_own_request_is_a_row_that_can_be_claimed(
    ledger: Ledger, writer: GroupWriter
) -> None:
    job = a_job(idempotency_key="task-1", batch_id="tasks")
    first, again = writer.write_down(job), writer.write_down(job, is_urgent=True)
    assert (first.id, first.state, first.is_new) == (job.id, JobState.QUEUED, True)
    assert (again.id, again.taken_for) == (job.id, None)
    [row] = rows(ledger, "jobs")
    assert (row.id, row.batch_id) == (job.id, "tasks")
    assert row.published_at_ms is not None, "the relay publishes no hint of it"
    assert [row.id for row in rows(ledger, "batches")] == ["tasks"]
    assert writer.record(success(claimed(writer, job.id))) is Recorded.APPLIED


def test_a_message_that_comes_twice_in_one_group_is_one_row_and_both_are_told(
    ledger: Ledger, writer: GroupWriter
) -> None:
    job = a_job(idempotency_key="task-1")
    with in_one_group(writer):
        told = [in_background(lambda: writer.write_down(job)) for _ in range(2)]
        claiming = in_background(lambda: writer.claim(job.id))
        wait_for_pending(writer, 3)
    assert [known().id for known in told] == [job.id, job.id]
    assert claiming().id == job.id, "rows are written before claims are made"
    assert len(rows(ledger, "jobs")) == len(rows(ledger, "requests")) == 1


def test_a_message_is_written_down_when_the_database_is_back(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    job = a_job()
    troubled.is_away = True
    writing = in_background(lambda: writer.write_down(job))
    troubled.wait_for_calls(3)
    troubled.is_away = False
    assert writing().is_new
    assert state(ledger, job.id) == "queued"


def test_a_message_that_no_row_can_hold_costs_its_neighbours_nothing(
    ledger: Ledger, writer: GroupWriter
) -> None:
    running = claimed(writer, put_one(ledger))
    jobs = [a_job(), a_job(user_metadata={"x": {1, 2}}), a_job()]  # nothing that JSON has
    with in_one_group(writer):
        told = [in_background(lambda job=job: writer.write_down(job)) for job in jobs]
        told.append(in_background(lambda: writer.record(success(running))))
        told.append(in_background(lambda: writer.claim(running.id)))
        wait_for_pending(writer, 5)
    answers = [tell() for tell in told]
    assert isinstance(answers[1], Exception)
    assert [answers[i].id for i in (0, 2)] == [jobs[i].id for i in (0, 2)]
    assert answers[3] is Recorded.APPLIED
    assert answers[4] is None
    assert sorted(row.state for row in rows(ledger, "jobs")) == ["queued", "queued", "succeeded"]
