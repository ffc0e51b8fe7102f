"""Group commit while the database is away, hangs, or the writer ends: all callers are told, and nothing paid is lost."""

from __future__ import annotations

import pytest

from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    a_job,
    give_back,
    job_row,
    put_one,
    state,
    success,
)
from tests.support.processes import wait_until
from tests.support.writing import Told, TroubledLedger, claimed, in_background, in_one_group, wait_for_pending
from worker.errors import Stopping
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway, WriterStopped
from worker.storage.outcomes import Recorded
from worker.storage.writer import GroupWriter


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
    assert writer.open_claims == {job.id: job.token}
    troubled.is_away = False
    assert waiting().id == other
    assert writer.record(success(job)) is Recorded.APPLIED


def test_an_answer_that_comes_between_two_tries_is_told_at_once(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is paid for, and goes to the spool: in memory until the next try a `kill -9` would lose it."""
    monkeypatch.setattr("worker.storage.writer._RETRY_FIRST_S", 300.0)
    job, other = claimed(writer, put_one(ledger)), put_one(ledger)
    troubled.is_away = True
    claiming, recording, again = Told(), Told(), Told()
    writer.begin_claim(other, claiming)
    troubled.wait_for_calls(3)  # both tries of the claim's group have failed
    for told in (recording, again):
        writer.begin_record(success(job), told)
        assert told.is_told.wait(10)
        assert [type(exc) for exc in told.errors] == [DatabaseAway]
    assert not claiming.is_told.is_set()
    assert writer.stop(10), "nor does a stop wait for the next try"
    assert [type(exc) for exc in claiming.errors] == [WriterStopped]


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
    assert writer.open_claims == {job.id: job.token for job in held}
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


def test_a_worker_that_ends_waits_for_no_claim_while_the_database_is_away(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can come of it. A message's own row is still waited for: it may be the only copy."""
    monkeypatch.setattr("worker.storage.writer._RETRY_FIRST_S", 300.0)
    ids = [put_one(ledger) for _ in range(2)]
    writing_down = a_job()
    troubled.is_away = True
    before, after = Told(), Told()
    written = in_background(lambda: writer.write_down(writing_down))
    writer.begin_claim(ids[0], before)
    wait_until(lambda: writer.is_stuck, within_s=10, what="the outage is seen")
    writer.refuse_claims()
    assert before.is_told.wait(10)
    writer.begin_claim(ids[1], after)
    assert after.is_told.wait(10)
    assert [type(exc) for exc in before.errors + after.errors] == [Stopping] * 2
    assert writer.stop(10)
    assert isinstance(written(), WriterStopped)
    assert writer.open_claims == {}


def test_claims_that_a_database_takes_are_answered_also_as_the_worker_ends(
    ledger: Ledger, writer: GroupWriter
) -> None:
    """The answer says what is to be given back."""
    writer.refuse_claims()
    id_ = put_one(ledger)
    assert claimed(writer, id_).id == id_
    assert not writer.is_stuck


def test_a_database_that_leaves_a_group_without_an_answer_for_seconds_is_told(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.storage.writer._HANGS_AFTER_S", 0.05)
    troubled.go_on.clear()
    claiming = in_background(lambda: writer.claim(put_one(ledger)))
    wait_until(lambda: writer.is_stuck, within_s=10, what="it is told")
    troubled.go_on.set()
    assert claiming() is not None
    wait_until(lambda: not writer.is_stuck, within_s=10, what="it answers again")


def test_a_record_that_the_database_keeps_waiting_comes_back_in_time_and_counts_once(
    ledger: Ledger, troubled: TroubledLedger, writer: GroupWriter
) -> None:
    """Who waited can spool it: an answer must not live in memory alone for as long as a database hangs."""
    job = claimed(writer, put_one(ledger))
    troubled.go_on.clear()
    with pytest.raises(DatabaseAway, match=r"not answered for 0\.05 s"):
        writer.record(success(job), within_s=0.05)
    assert writer.open_claims == {job.id: job.token}, "no beat may take it for an orphan"
    troubled.go_on.set()
    assert writer.record(success(job)) is Recorded.REPEATED
    assert state(ledger, job.id) == "succeeded"
    assert writer.open_claims == {}


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
