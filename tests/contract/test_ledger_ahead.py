"""Jobs that are claimed ahead of the slots: held, called in their turn, and given back as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Event
from typing import Any

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from schemas.failure import FailureKind
from schemas.job import JobState
from tests.contract.test_ledger_adoption import BASE, read
from tests.support.ahead import Endpoint, Row, eventually
from tests.support.house import House
from tests.support.ledger import NOW, job_row, rows, state
from tests.support.processes import wait_until
from worker.attempt.dispatch import Received, choose_ahead
from worker.attempt.report import Report, Verdict
from worker.attempt.slots import Slots
from worker.intake.messages import Asked
from worker.storage.batches import make_batch
from worker.storage.errors import DatabaseAway
from worker.storage.moves import cancel_jobs, expire_jobs
from worker.storage.tables import batches, jobs
from worker.storage.workers import register_worker, release_orphans


@pytest.fixture
def house(build: Callable[..., House]) -> House:
    return build(slots=Slots(1, 1, ahead=2))


def test_so_many_are_claimed_ahead_and_each_is_called_in_its_turn(house: House) -> None:
    row = Row(house)
    assert row.states() == ["running", "running", "running", "queued"]
    assert row.end() == [Verdict.SUCCEEDED] * 4
    assert row.endpoint.called == row.ids
    assert house.simulator.stats()["max_in_flight"] == 1
    assert not house.writer.open_claims
    assert house.slots.active == 0


def test_a_beat_takes_what_is_claimed_ahead_for_held(house: House) -> None:
    row = Row(house)
    house.ledger.run(
        partial(
            register_worker,
            worker_id="w1",
            endpoint=house.endpoint,
            hostname="h",
            pid=1,
            slots=1,
            lease_ms=1000,
            now_ms=NOW,
        )
    )
    assert (
        house.writer.call(
            lambda c: release_orphans(c, "w1", open_claims=house.writer.open_claims, now_ms=NOW)
        )
        == []
    )
    assert row.end() == [Verdict.SUCCEEDED] * 4


def test_an_attempt_begins_with_its_call_and_not_with_its_claim(house: House) -> None:
    row = Row(house, jobs=2)
    house.clock.advance(0.9)
    assert row.end() == [Verdict.SUCCEEDED] * 2
    waited = row.ids[1]
    assert job_row(house.ledger, waited).claimed_at_ms == NOW
    [attempt] = rows(house.ledger, "attempts", job_id=waited)
    assert (attempt.started_at_ms, attempt.ended_at_ms) == (NOW + 900, NOW + 900)
    assert attempt.number == 1


@pytest.mark.parametrize("why", ["the gate shuts", "somebody pauses the endpoint"])
def test_what_was_claimed_ahead_of_a_shut_gate_goes_back_as_if_nothing_had_been(
    house: House, why: str
) -> None:
    row = Row(house, jobs=3)
    if why == "the gate shuts":
        house.gates.shut(FailureKind.RATE_LIMITED, asked_s=60.0)
    else:
        house.is_paused = True
    assert row.end() == [Verdict.SUCCEEDED, Verdict.NOT_ADMITTED, Verdict.NOT_ADMITTED]
    assert row.states() == ["succeeded", "queued", "queued"]
    assert all(map(row.has_left_no_trace, row.ids[1:]))


def test_nothing_is_claimed_at_a_gate_that_is_known_to_be_shut(house: House) -> None:
    house.gates.shut(FailureKind.RATE_LIMITED, asked_s=60.0)
    ids = [house.put() for _ in range(5)]
    house.ledger.run(lambda c: c.execute(update(jobs).values(published_at_ms=NOW)))
    assert [house.execute(id_) for id_ in ids] == [Verdict.NOT_ADMITTED] * 5
    house.wait_for_the_database()
    assert {(row.claims, row.published_at_ms) for row in rows(house.ledger, "jobs")} == {(0, None)}


def cancelled(house: House, id_: str) -> None:
    house.ledger.run(lambda c: cancel_jobs(c, [id_], now_ms=NOW))


def held(house: House, id_: str) -> None:
    house.ledger.run(lambda c: c.execute(update(batches).values(held_at_ms=NOW)))


def expired(house: House, id_: str) -> None:
    house.ledger.run(lambda c: c.execute(update(jobs).where(jobs.c.id == id_).values(expires_at_ms=NOW + 1)))


def taken_over(house: House, id_: str) -> None:
    """As after a suspension that was longer than the lease."""
    others = {"worker_id": "w2", "claim_token": "w2:1"}
    house.ledger.run(lambda c: c.execute(update(jobs).where(jobs.c.id == id_).values(others)))


@pytest.mark.parametrize(
    ("happens", "left_as"),
    [(cancelled, "cancelled"), (held, "queued"), (expired, "expired"), (taken_over, "running")],
)
def test_nobody_pays_for_a_job_that_was_called_off_while_it_waited_for_its_slot(
    house: House, happens: Callable[[House, str], None], left_as: str
) -> None:
    make = partial(make_batch, label="x", endpoint=house.endpoint, idempotency_key=None, now_ms=NOW)
    house.ledger.run(lambda c: make(c, "a_batch", kind="submit"))
    row = Row(house, jobs=2, batch_id="a_batch")
    happens(house, row.ids[1])
    house.clock.advance(2.0)
    assert row.end() == [Verdict.SUCCEEDED, Verdict.NOT_ADMITTED]
    house.ledger.run(lambda c: expire_jobs(c, now_ms=house.clock.now_ms()))
    assert row.states() == ["succeeded", left_as]
    assert row.endpoint.called == row.ids[:1]
    assert rows(house.ledger, "attempts", job_id=row.ids[1]) == []


def test_nobody_calls_a_job_that_waited_for_its_slot_where_the_database_cannot_tell_whose_it_is(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease may have run out in the same outage: then the job is another worker's, and paid for twice."""
    row = Row(house, jobs=2)
    house.clock.advance(2.0)

    def fail(*_: Any, **__: Any) -> None:
        raise DatabaseAway("away")

    monkeypatch.setattr(house.writer, "call", fail)
    assert row.end() == [Verdict.SUCCEEDED, Verdict.NOT_ADMITTED]
    assert row.endpoint.called == row.ids[:1]
    assert row.states() == ["succeeded", "queued"]


def test_a_lone_job_passes_those_that_were_claimed_ahead(house: House) -> None:
    row = Row(house)
    lone = [house.put() for _ in range(2)]
    first = house.receive(lone[0])
    eventually(lambda: row.endpoint.called == [row.ids[0], lone[0]])
    second = house.receive(lone[1])
    eventually(lambda: lone[1] in house.writer.open_claims)
    row.endpoint.answer()
    assert first.result(20).verdict is second.result(20).verdict is Verdict.SUCCEEDED
    assert row.end() == [Verdict.SUCCEEDED] * 4
    assert row.endpoint.called.index(lone[1]) <= 3, "before those that had come earlier"


def test_a_second_message_of_a_job_that_is_claimed_ahead_finds_nothing_to_do(house: House) -> None:
    row = Row(house, jobs=2)
    assert house.receive(row.ids[1], is_bulk=True).result(20).verdict is Verdict.NO_CLAIM
    assert row.end() == [Verdict.SUCCEEDED] * 2
    assert house.simulator.stats()["calls"] == 2


def test_one_that_was_not_to_be_had_lets_the_next_be_claimed(build: Callable[..., House]) -> None:
    house = build(slots=Slots(1, ahead=0))
    ids = [house.put(is_bulk=True) for _ in range(20)]
    house.ledger.run(lambda c: c.execute(update(jobs).where(jobs.c.id.in_(ids[:19])).values(state="failed")))
    reports = [house.receive(id_, is_bulk=True) for id_ in ids]
    assert [one.result(20).verdict for one in reports] == [Verdict.NO_CLAIM] * 19 + [Verdict.SUCCEEDED]


def test_nothing_is_claimed_while_one_runs_alone(build: Callable[..., House]) -> None:
    """A job that is only claimed would be lost with it, and counted as if it had been in a call."""
    house = build(slots=Slots(4, ahead=2))
    suspect, innocent = house.put(is_bulk=True), house.put(is_bulk=True)
    house.ledger.run(lambda c: c.execute(update(jobs).where(jobs.c.id == suspect).values(losses=2)))
    endpoint = Endpoint(house)
    on_trial = house.receive(suspect, is_bulk=True)
    eventually(lambda: endpoint.called == [suspect])
    later = house.receive(innocent, is_bulk=True)
    house.wait_for_the_database()
    assert (state(house.ledger, innocent), list(house.writer.open_claims)) == ("queued", [suspect])
    endpoint.answer()
    assert on_trial.result(20).verdict is later.result(20).verdict is Verdict.SUCCEEDED


def test_claims_wait_for_the_database_and_nothing_is_called_meanwhile(build: Callable[..., House]) -> None:
    house = build(slots=Slots(4, ahead=2))
    ids = [house.put(is_bulk=True) for _ in range(8)]
    house.ledger.is_away = lambda: True
    reports = [house.receive(id_, is_bulk=True) for id_ in ids]
    Event().wait(0.3)  # the outage's own length
    assert house.simulator.stats()["calls"] == 0
    house.ledger.is_away = lambda: False
    assert [one.result(20).verdict for one in reports] == [Verdict.SUCCEEDED] * 8


def test_a_database_that_takes_no_claim_of_one_job_costs_the_others_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_claim = house.writer.begin_claim

    def break_one(job_id: str, answer: Any, **options: Any) -> None:
        if job_id == broken:
            answer.set_exception(KeyError("a defect"))
        else:
            begin_claim(job_id, answer, **options)

    monkeypatch.setattr(house.writer, "begin_claim", break_one)
    broken, sound = house.put(), house.put()
    assert house.execute(broken) is Verdict.NO_CLAIM
    assert house.execute(sound) is Verdict.SUCCEEDED


def test_a_defect_in_an_attempt_is_told_and_keeps_neither_slot_nor_claim(
    build: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = build(slots=Slots(1, ahead=0))
    attempt = house.executor.attempt

    def break_once(*args: Any, **options: Any) -> Report:
        monkeypatch.setattr(house.executor, "attempt", attempt)
        raise KeyError("a defect")

    monkeypatch.setattr(house.executor, "attempt", break_once)
    report = house.receive(house.put(), is_bulk=True).result(20)
    assert (report.verdict, report.summary) == (Verdict.BROKE, "KeyError")
    assert not house.writer.open_claims, "the next beat releases it"
    assert house.receive(house.put(), is_bulk=True).result(20).verdict is Verdict.SUCCEEDED


def test_a_message_that_cannot_be_told_of_is_logged_and_the_next_goes_on(build: Callable[..., House]) -> None:
    house = build(slots=Slots(1, ahead=0))

    def fail(_report: Report) -> None:
        raise ConnectionError("the broker is gone, and so is its word")

    with capture_logs() as told:
        unfinished = house.put()
        house.dispatcher.receive(Received(unfinished, True, fail, lambda: None))
        assert house.receive(house.put(), is_bulk=True).result(20).verdict is Verdict.SUCCEEDED
        # The first one had left its slot before its answer was written down: it may be told of after the second.
        wait_until(lambda: any(one["event"] == "message.unfinished" for one in told), what="it is logged")
    [entry] = [one for one in told if one["event"] == "message.unfinished"]
    assert (entry["job_id"], entry["error"]) == (unfinished, "ConnectionError")
    # As a traceback, of which no log shows a word that is not ours: test_logs_of_crashes.py.
    assert isinstance(entry["exc_info"], ConnectionError)
    assert not any("its word" in str(value) for name, value in entry.items() if name != "exc_info")
    assert {row.state for row in rows(house.ledger, "jobs")} == {"succeeded"}


def test_a_foreign_message_is_a_row_and_counts_as_published_before_it_is_claimed(house: House) -> None:
    """Else the relay would publish a hint of it meanwhile."""
    job = read(house, Asked(request=BASE))
    seen: list[tuple[str, bool]] = []
    begin_claim = house.writer.begin_claim

    def look(job_id: str, answer: Any, **options: Any) -> None:
        row = job_row(house.ledger, job_id)
        seen.append((row.state, row.published_at_ms is not None))
        begin_claim(job_id, answer, **options)

    house.writer.begin_claim = look  # type: ignore[method-assign]
    assert house.adopt(job).verdict is Verdict.SUCCEEDED
    assert seen == [(JobState.QUEUED, True)]


def test_a_foreign_message_at_a_shut_gate_is_a_row_for_the_relay(house: House) -> None:
    house.gates.shut(FailureKind.RATE_LIMITED, asked_s=60.0)
    job = read(house, Asked(request=BASE))
    assert house.adopt(job).verdict is Verdict.NOT_ADMITTED
    house.wait_for_the_database()
    row = job_row(house.ledger, job.id)
    assert (row.state, row.published_at_ms, row.claims) == ("queued", None, 0)


def test_a_foreign_message_whose_time_has_not_come_waits_as_a_row(house: House) -> None:
    job = read(house, Asked(request=BASE, not_before_ms=NOW + 5000))
    report = house.adopt(job)
    assert (report.verdict, report.retry_in_s) == (Verdict.WAITING, 5.0)
    assert state(house.ledger, job.id) == "waiting"


@pytest.mark.parametrize(
    ("slots", "claim_s", "call_s", "ahead"),
    [
        (100, 0.05, 0.2, 50),  # the limit: 76 would be aimed at
        (100, 0.05, 0.5, 31),
        (500, 0.05, 2.0, 39),
        (100, 0.05, 60.0, 2),
        (1, 0.0, 60.0, 1),
        (4, 0.0, 0.0, 1),
    ],
)
def test_quick_answers_are_claimed_ahead_by_many_and_slow_ones_by_few(
    slots: int, claim_s: float, call_s: float, ahead: int
) -> None:
    assert choose_ahead(slots, claim_s, call_s, limit=50) == ahead
