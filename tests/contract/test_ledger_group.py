"""Group commit on both databases: many slots, one writer, one answer each, whatever the database does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection

from schemas.job import JobState
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
from tests.support.processes import wait_until
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway
from worker.storage.group import GroupWriter, WriterStopped
from worker.storage.outcomes import ClaimedJob, Recorded
from worker.storage.window import take_due
from worker.storage.workers import release_orphans


class TroubledLedger:
    """A ledger whose trouble is arranged: away for a while, or silent after a commit."""

    def __init__(self, inner: Ledger) -> None:
        self.inner = inner
        self.is_away = False
        self.silent_commits = 0  # so many transactions commit without a word
        self.failures_before: list[BaseException] = []  # raised one by one instead of running
        self.calls = 0
        self.changed = threading.Condition()
        self.go_on = threading.Event()  # cleared: it stands still
        self.go_on.set()

    def run(self, work: Callable[[Connection], Any]) -> Any:
        with self.changed:
            self.calls += 1
            self.changed.notify_all()
        assert self.go_on.wait(20)
        if self.failures_before:
            raise self.failures_before.pop(0)
        if self.is_away:
            raise DatabaseAway("away")
        answer = self.inner.run(work)
        if self.silent_commits:
            self.silent_commits -= 1
            raise DatabaseAway("nobody knows whether it was committed")
        return answer

    def wait_for_calls(self, n: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.calls >= n, timeout=10)


@pytest.fixture
def troubled(ledger: Ledger) -> TroubledLedger:
    return TroubledLedger(ledger)


@pytest.fixture
def writer(troubled: TroubledLedger, clock: FakeClock) -> Iterator[GroupWriter]:
    writer = GroupWriter(troubled, worker_id="w1", endpoint=ENDPOINT, clock=clock, window_s=0.002)  # type: ignore[arg-type]
    writer.start()
    yield writer
    troubled.is_away = False
    troubled.go_on.set()
    assert writer.stop(10)


def claimed(writer: GroupWriter, id_: str) -> ClaimedJob:
    job = writer.claim(id_)
    assert job is not None
    return job


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Starts `work` in a thread; the answer is what it returned or the exception it raised."""
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append(work())
        except Exception as exc:
            answer.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> Any:
        thread.join(20)
        assert not thread.is_alive(), "it waits for ever"
        return answer[0]

    return join


@contextmanager
def in_one_group(writer: GroupWriter) -> Iterator[None]:
    """What is asked for inside waits in line, and makes one group."""
    started, go_on = threading.Event(), threading.Event()

    def hold(_: Connection) -> None:
        started.set()
        assert go_on.wait(10)

    busy = writer.begin(hold)
    assert started.wait(10)
    yield
    go_on.set()
    busy.result()


def wait_for_pending(writer: GroupWriter, count: int) -> None:
    wait_until(lambda: len(writer._pending) >= count, within_s=10, what="the requests are in line")


def test_many_slots_at_once_each_get_one_job_one_record_and_one_result(
    ledger: Ledger, writer: GroupWriter
) -> None:
    ids = [job.id for job in put(ledger, *[a_job() for _ in range(320)])]

    def slot(i: int) -> list[Recorded]:
        mine = [claimed(writer, id_) for id_ in ids[i * 10 : i * 10 + 10]]
        return [writer.record(success(job, answer=job.id)) for job in mine]

    assert {what for answer in at_once(32, slot) for what in answer} == {Recorded.APPLIED}
    assert writer.held == {}
    assert {row.claims for row in rows(ledger, "jobs")} == {1}
    assert all(row.answer == row.job_id for row in rows(ledger, "results"))
    assert len(rows(ledger, "results")) == 320


class Told:
    """An answer that nobody waits for: it notes what it is told, in which thread."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.errors: list[BaseException] = []
        self.threads: set[str] = set()
        self.is_told = threading.Event()

    def set_result(self, value: Any) -> None:
        self.results.append(value)
        self._note()

    def set_exception(self, exception: BaseException) -> None:
        self.errors.append(exception)
        self._note()

    def _note(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.is_told.set()


def test_a_claim_and_a_record_can_be_asked_for_without_waiting(ledger: Ledger, writer: GroupWriter) -> None:
    id_ = put_one(ledger)
    claiming, recording, nothing = Told(), Told(), Told()
    writer.begin_claim(id_, claiming)
    assert claiming.is_told.wait(10)
    [job] = claiming.results
    assert writer.held == {id_: job.token}
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


def test_claims_that_nobody_waits_for_are_told_of_the_end_and_records_that_the_database_is_away(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    job, claiming, recording = claimed(writer, put_one(ledger)), Told(), Told()
    troubled.is_away = True
    writer.begin_record(give_back(job), recording)
    writer.begin_claim(put_one(ledger), claiming)
    assert recording.is_told.wait(10)
    assert [type(exc) for exc in recording.errors] == [DatabaseAway]
    assert not claiming.is_told.wait(0.3)
    assert writer.stop(10)
    assert [type(exc) for exc in claiming.errors] == [WriterStopped]


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
    assert writer.held == {id_: job.token}
    assert writer.record(success(job)) is Recorded.APPLIED


def test_a_record_whose_commit_was_not_answered_is_recorded_once(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    job = claimed(writer, put_one(ledger))
    troubled.silent_commits = 1
    assert writer.record(success(job)) is Recorded.REPEATED
    assert len(rows(ledger, "results")) == 1
    assert writer.held == {}


def test_a_wait_whose_commit_was_not_answered_burns_one_attempt(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    job = claimed(writer, put_one(ledger))
    troubled.silent_commits = 1
    writer.record(setback(job, not_before_ms=NOW + 9))
    row = job_row(ledger, job.id)
    assert (row.state, row.attempts) == ("waiting", 1)
    assert writer.held == {}


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


def test_claims_wait_while_the_database_is_away_and_go_on_when_it_is_back(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    ids = [put_one(ledger), put_one(ledger)]
    troubled.is_away = True
    waiting = [in_background(lambda id_=id_: writer.claim(id_)) for id_ in ids]
    troubled.wait_for_calls(4)
    troubled.is_away = False
    jobs = [join() for join in waiting]
    assert sorted(job.id for job in jobs) == sorted(ids)
    assert [job_row(ledger, id_).claims for id_ in ids] == [1, 1]


def test_records_fail_fast_while_claims_wait_for_the_database(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    job, other = claimed(writer, put_one(ledger)), put_one(ledger)
    troubled.is_away = True
    waiting = in_background(lambda: writer.claim(other))
    troubled.wait_for_calls(3)
    assert isinstance(in_background(lambda: writer.record(success(job)))(), DatabaseAway)
    assert isinstance(in_background(lambda: writer.call(lambda c: 1))(), DatabaseAway)
    assert writer.held == {job.id: job.token}
    troubled.is_away = False
    assert waiting().id == other
    assert writer.record(success(job)) is Recorded.APPLIED


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


def test_stopping_tells_all_whose_requests_wait_for_the_database(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    troubled.is_away = True
    owed = writer.begin(lambda c: None)
    waiting = in_background(lambda: writer.write_down(a_job()))
    troubled.wait_for_calls(3)
    assert writer.stop(10)
    assert isinstance(waiting(), WriterStopped)
    with pytest.raises(WriterStopped):
        owed.result(1)


def test_an_outage_in_mid_halving_keeps_no_record_waiting_for_the_database(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    """The other half is told as well: its answers are paid for, and belong into the spool."""
    held = [claimed(writer, put_one(ledger)) for _ in range(4)]
    id_ = put_one(ledger)
    with in_one_group(writer):
        records = [in_background(lambda job=job: writer.record(success(job))) for job in held]
        claiming = in_background(lambda: writer.claim(id_))
        wait_for_pending(writer, 5)
        troubled.failures_before = [RuntimeError("a row that cannot be stored")]
        troubled.is_away = True
    assert [type(tell()) for tell in records] == [DatabaseAway] * 4
    assert writer.held == {job.id: job.token for job in held}
    troubled.is_away = False
    assert claiming().id == id_


def test_a_writer_that_dies_in_an_outage_tells_those_who_wait_for_the_database(
    ledger: Ledger, troubled: TroubledLedger, clock: FakeClock
) -> None:
    died: list[BaseException] = []
    writer = GroupWriter(
        troubled,  # type: ignore[arg-type]
        worker_id="w1",
        endpoint=ENDPOINT,
        clock=clock,
        window_s=0.0,
        on_death=died.append,
    )
    writer.start()
    troubled.is_away = True
    claiming = in_background(lambda: writer.claim("a"))
    troubled.wait_for_calls(3)
    troubled.failures_before = [GeneratorExit()]  # no Exception: nothing catches it
    assert isinstance(claiming(), WriterStopped)
    with pytest.raises(WriterStopped):
        writer.claim("b")
    wait_until(lambda: died, within_s=10, what="the writer has ended")
    assert [type(exc) for exc in died] == [GeneratorExit]


def test_stopping_releases_those_who_wait_for_the_database(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    id_ = put_one(ledger)
    troubled.is_away = True
    waiting = in_background(lambda: writer.claim(id_))
    troubled.wait_for_calls(3)
    assert writer.stop(10)
    assert isinstance(waiting(), WriterStopped)
    with pytest.raises(WriterStopped):
        writer.claim(id_)
    with pytest.raises(WriterStopped):
        writer.call(lambda c: 1)


def test_a_record_that_the_database_keeps_waiting_comes_back_in_time_and_counts_once(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    """Who waited can spool it: an answer must not live in memory alone for as long as a database hangs."""
    job = claimed(writer, put_one(ledger))
    troubled.go_on.clear()
    with pytest.raises(DatabaseAway, match=r"not answered for 0\.05 s"):
        writer.record(success(job), within_s=0.05)
    assert writer.held == {job.id: job.token}, "no beat may take it for an orphan"
    troubled.go_on.set()
    assert writer.record(success(job)) is Recorded.REPEATED
    assert state(ledger, job.id) == "succeeded"
    assert writer.held == {}


def test_a_worker_that_ends_gets_all_its_records_back_from_a_database_that_hangs(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    jobs = [claimed(writer, put_one(ledger)) for _ in range(2)]
    troubled.go_on.clear()
    calls = troubled.calls
    written = in_background(lambda: writer.record(success(jobs[0])))
    troubled.wait_for_calls(calls + 1)
    pending = in_background(lambda: writer.record(success(jobs[1])))
    while not writer._pending:
        pass
    writer.abandon_records()
    assert isinstance(written(), DatabaseAway)
    assert isinstance(pending(), DatabaseAway)
    troubled.go_on.set()
    for job in jobs:  # and the writer is none the worse for it
        assert writer.record(success(job)) is Recorded.REPEATED


def test_what_is_pending_is_written_before_the_writer_ends(
    ledger: Ledger, troubled: TroubledLedger, clock: FakeClock
) -> None:
    first = GroupWriter(troubled, worker_id="w1", endpoint=ENDPOINT, clock=clock, window_s=0.0)  # type: ignore[arg-type]
    first.start()
    job = claimed(first, put_one(ledger))
    started, go_on = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        started.set()
        assert go_on.wait(10)

    busy = in_background(lambda: first.call(hold))
    assert started.wait(10)
    late = in_background(lambda: first.record(success(job)))
    while not first._pending:
        pass
    first._stopping.set()
    go_on.set()
    assert busy() is None
    assert late() is Recorded.APPLIED
    assert first.stop(10)


def test_a_beat_in_the_same_group_takes_no_fresh_claim_for_an_orphan(
    ledger: Ledger, writer: GroupWriter
) -> None:
    old = claimed(writer, put_one(ledger))
    id_ = put_one(ledger)
    started, go_on = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        started.set()
        assert go_on.wait(10)

    def beat(connection: Connection) -> list[str]:
        return release_orphans(connection, "w1", held=writer.held, now_ms=NOW)

    busy = in_background(lambda: writer.call(hold))
    assert started.wait(10)
    claiming, beating = in_background(lambda: writer.claim(id_)), in_background(lambda: writer.call(beat))
    while len(writer._pending) < 2:
        pass
    go_on.set()
    busy()
    job = claiming()
    assert beating() == []
    assert state(ledger, id_) == state(ledger, old.id) == "running"
    assert writer.record(success(job)) is Recorded.APPLIED


def test_a_forgotten_claim_is_released_by_the_next_beat(ledger: Ledger, writer: GroupWriter) -> None:
    job = claimed(writer, put_one(ledger))
    writer.forget(job.id)
    released = writer.call(lambda c: release_orphans(c, "w1", held=writer.held, now_ms=NOW))
    assert released == [job.id]


def test_a_job_given_back_can_be_claimed_again_by_the_same_process(
    ledger: Ledger, writer: GroupWriter
) -> None:
    id_ = put_one(ledger)
    writer.record(give_back(claimed(writer, id_)))
    assert claimed(writer, id_).number == 2


def test_a_message_given_back_makes_the_job_the_relays_again(ledger: Ledger, writer: GroupWriter) -> None:
    id_ = put_one(ledger)
    ledger.run(lambda c: take_due(c, ENDPOINT, room=1, after_batch="", now_ms=NOW))
    writer.give_message_back(id_)
    writer.call(lambda c: None)
    assert job_row(ledger, id_).published_at_ms is None
