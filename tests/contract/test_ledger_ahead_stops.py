"""Jobs that are claimed ahead of the slots of a worker that ends: they are given back, and nobody waits for them."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, current_thread
from typing import Any

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from tests.support.ahead import Endpoint, Row, eventually
from tests.support.house import House
from tests.support.ledger import job_row, state
from worker.attempt.dispatch import Received
from worker.attempt.report import Report, Verdict
from worker.attempt.slots import Slots
from worker.storage.reply import Reply
from worker.storage.tables import jobs


@pytest.fixture
def house(build: Callable[..., House]) -> House:
    return build(slots=Slots(1, 1, ahead=2))


def test_a_worker_that_stops_gives_back_what_it_claimed_ahead_as_if_nothing_had_been(house: House) -> None:
    row = Row(house)
    house.dispatcher.stop()
    assert [one.result(20).verdict for one in row.reports[1:]] == [Verdict.GIVEN_BACK] * 3
    assert row.states() == ["running", "queued", "queued", "queued"]
    assert all(map(row.has_left_no_trace, row.ids[1:3])), "claimed"
    assert job_row(house.ledger, row.ids[3]).claims == 0
    row.endpoint.answer()
    assert row.reports[0].result(20).verdict is Verdict.SUCCEEDED
    assert house.slots.wait_until_idle(lambda: False, timeout_s=5)


def test_a_claim_that_is_answered_when_the_worker_stops_is_given_back(house: House) -> None:
    begin_claim = house.writer.begin_claim

    def answer_late(job_id: str, answer: Any, **options: Any) -> None:
        reply: Reply[Any] = Reply()
        begin_claim(job_id, reply, **options)

        def stop_first() -> None:
            job = reply.result()
            house.dispatcher.stop()
            answer.set_result(job)

        house.pool.submit(stop_first)

    house.writer.begin_claim = answer_late  # type: ignore[method-assign]
    id_ = house.put()
    assert house.execute(id_) is Verdict.GIVEN_BACK
    assert house.slots.wait_until_idle(lambda: False, timeout_s=5)
    row = job_row(house.ledger, id_)
    assert (row.state, row.claims, house.simulator.stats()["calls"]) == ("queued", 0, 0)
    assert not house.writer.open_claims


@pytest.mark.parametrize("losses", [0, 2])
def test_a_worker_that_stops_while_the_database_is_away_waits_for_no_claim(
    build: Callable[..., House], losses: int
) -> None:
    """But for the call in flight, whose answer is spooled."""
    house = build(slots=Slots(1, ahead=2))
    ids = [house.put(is_bulk=True) for _ in range(4)]
    house.ledger.run(lambda c: c.execute(update(jobs).where(jobs.c.id.in_(ids[1:])).values(losses=losses)))
    endpoint = Endpoint(house)
    paid = house.receive(ids[0], is_bulk=True)
    eventually(lambda: endpoint.called == ids[:1])
    house.ledger.is_away = lambda: True
    others = [house.receive(id_, is_bulk=True) for id_ in ids]  # the first one is in its call already
    eventually(lambda: house.writer.is_stuck)
    assert house.executor.has_answers_at_stake
    house.dispatcher.stop()
    assert [one.result(5).verdict for one in others] == [Verdict.GIVEN_BACK] * 4
    assert not house.slots.wait_until_idle(lambda: False, timeout_s=0.2), "the call goes on"
    endpoint.answer()
    assert house.slots.wait_until_idle(lambda: False, timeout_s=5)
    assert paid.result(5).verdict is Verdict.SUCCEEDED
    assert (len(house.spool), house.executor.has_answers_at_stake) == (1, False)
    assert list(house.writer.open_claims) == ids[:1], "what is spooled is not released as the worker ends"
    house.ledger.is_away = lambda: False


@pytest.mark.parametrize("is_back", [True, False])
def test_an_answer_that_nothing_takes_is_tried_once_more_as_the_worker_stops(
    house: House, monkeypatch: pytest.MonkeyPatch, is_back: bool
) -> None:
    """Where nothing takes it to the end, it is lost. That is no defect of the job, and burns no attempt."""
    row, waits, stops = Row(house, jobs=1), Event(), house.spool.wait_until_writable

    def wait() -> None:
        waits.set()
        stops()

    monkeypatch.setattr(house.spool, "keep", lambda _: False)
    monkeypatch.setattr(house.spool, "reject", lambda _: False)
    monkeypatch.setattr(house.spool, "wait_until_writable", wait)
    house.ledger.is_away = lambda: True
    row.endpoint.answer()
    assert waits.wait(20)
    if is_back:
        house.ledger.is_away = lambda: False
        house.wait_for_the_database()
    house.dispatcher.stop()
    house.spool.stop()
    house.writer.abandon_records()
    verdict = row.reports[0].result(20).verdict
    house.ledger.is_away = lambda: False
    found = job_row(house.ledger, row.ids[0])
    assert (verdict, found.state) == (
        (Verdict.SUCCEEDED, "succeeded") if is_back else (Verdict.GIVEN_BACK, "running")
    )
    assert (found.attempts, found.failure_kind, dict(house.writer.open_claims)) == (0, None, {})


def test_a_pool_that_is_shut_keeps_nobody_waiting(house: House) -> None:
    """Celery shuts its pool while claims are on their way."""
    row = Row(house)
    house.pool.shutdown(wait=False)
    house.dispatcher.stop()
    assert [one.result(20).verdict for one in row.reports[1:]] == [Verdict.GIVEN_BACK] * 3
    assert all(map(row.has_left_no_trace, row.ids[1:3]))
    assert house.receive(house.put()).result(20).verdict is Verdict.GIVEN_BACK
    row.endpoint.answer()
    assert row.reports[0].result(20).verdict is Verdict.SUCCEEDED


def test_one_that_runs_alone_and_still_has_no_thread_does_not_keep_the_worker_from_its_end(
    house: House,
) -> None:
    """Celery drops what its pool has in line."""
    id_, go_on = house.put(is_bulk=True), Event()
    house.ledger.run(lambda c: c.execute(update(jobs).where(jobs.c.id == id_).values(losses=2)))
    busy = [house.pool.submit(go_on.wait, 20) for _ in range(house.pool._max_workers)]
    house.receive(id_, is_bulk=True)
    eventually(lambda: house.pool._work_queue.qsize() == 1)
    house.dispatcher.stop()
    house.pool.shutdown(wait=False, cancel_futures=True)
    assert house.slots.wait_until_idle(lambda: False, timeout_s=5)
    go_on.set()
    assert all(one.result(20) for one in busy)
    assert state(house.ledger, id_) == "queued"


def test_where_the_pool_is_shut_the_writer_does_not_wait_for_a_broker(house: House) -> None:
    """To give a foreign message back is to ask the broker, which may hang."""
    row = Row(house, jobs=1)
    told, broker_answers = [], Event()

    def finish(report: Report) -> None:
        told.append((current_thread().name, report.verdict))
        assert broker_answers.wait(20)

    ids = [house.put(is_bulk=True) for _ in range(2)]
    for id_ in ids:
        house.dispatcher.receive(Received(id_, True, finish, lambda: None))
    eventually(lambda: len(house.writer.open_claims) == 3)
    house.pool.shutdown(wait=False)
    house.dispatcher.stop()
    eventually(lambda: len(told) == 1)
    house.wait_for_the_database()
    broker_answers.set()
    eventually(lambda: len(told) == 2)
    assert told == [("antrean-untold", Verdict.GIVEN_BACK)] * 2
    row.endpoint.answer()
    assert row.reports[0].result(20).verdict is Verdict.SUCCEEDED


def test_a_claim_of_one_that_runs_alone_which_its_writer_committed_and_did_not_tell_is_not_held(
    build: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = build()
    died: list[BaseException] = []
    house.writer._on_death = died.append
    id_ = house.put()
    house.ledger.run(lambda c: c.execute(update(jobs).where(jobs.c.id == id_).values(losses=2)))
    tell = house.writer._tell

    def die_over_a_claim(written: Any) -> None:
        if written.claimed:
            raise SystemExit
        tell(written)

    monkeypatch.setattr(house.writer, "_tell", die_over_a_claim)
    assert house.receive(id_).result(20).verdict is Verdict.GIVEN_BACK
    assert (state(house.ledger, id_), dict(house.writer.open_claims)) == ("running", {})
    eventually(lambda: bool(died))
    assert [type(one) for one in died] == [SystemExit]


def test_a_writer_that_dies_says_so_also_where_those_whom_it_tells_fail_as_well(
    build: Callable[..., House],
) -> None:
    """As where no memory is left for the pool."""
    house = build()
    died: list[BaseException] = []
    house.writer._on_death = died.append
    told: list[Report] = []
    go_on, is_held = Event(), Event()

    def no_memory(_work: object) -> None:
        raise MemoryError

    def hold(_connection: object) -> None:
        is_held.set()
        assert go_on.wait(20)

    ids = [house.put() for _ in range(3)]
    house.writer.begin(hold)
    assert is_held.wait(20)
    spawn, house.dispatcher._run_soon = house.dispatcher._run_soon, no_memory
    for id_ in ids:
        house.dispatcher.receive(Received(id_, False, told.append, lambda: None))
    with capture_logs() as entries:
        go_on.set()
        eventually(lambda: bool(died))
    assert [type(one) for one in died] == [MemoryError]
    assert {one["error"] for one in entries if one["event"] == "writer.untold"} == {"MemoryError"}
    house.dispatcher._run_soon = spawn


def test_a_claim_that_its_writer_committed_and_did_not_tell_is_not_held(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer died in between: the end of this worker releases the claim, and nobody counts a loss."""
    died: list[BaseException] = []
    house.writer._on_death = died.append

    def die(_written: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(house.writer, "_tell", die)
    id_ = house.put()
    assert house.receive(id_).result(20).verdict is Verdict.GIVEN_BACK
    assert (state(house.ledger, id_), dict(house.writer.open_claims)) == ("running", {})
    eventually(lambda: bool(died))
    assert [type(one) for one in died] == [SystemExit]


def test_a_job_in_a_call_keeps_its_claim_where_the_writer_dies_over_a_second_message_of_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the next beat would release the job, and another worker would make the call again."""
    died: list[BaseException] = []
    house.writer._on_death = died.append
    endpoint = Endpoint(house)
    id_ = house.put()
    first = house.receive(id_)
    eventually(lambda: endpoint.called == [id_])

    def die(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(house.writer, "_commit", die)
    assert house.receive(id_).result(20).verdict is Verdict.GIVEN_BACK
    eventually(lambda: bool(died))
    assert list(house.writer.open_claims) == [id_]
    endpoint.answer()
    assert first.result(20).verdict is Verdict.SUCCEEDED, "its answer is in the spool"
