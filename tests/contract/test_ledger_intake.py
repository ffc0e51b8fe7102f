"""Intake on both databases: a request becomes a row once for each idempotency key."""

from __future__ import annotations

import os
import random
import string

import pytest
from sqlalchemy.exc import SQLAlchemyError

from schemas.job import JobState
from tests.support.clock import FakeClock
from tests.support.ledger import NOW, a_job, at_once, claim_one, job_row, put, record, rows, success
from worker.errors import BrokerAway
from worker.intake.submit import submit_many, submit_one
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway
from worker.storage.intake import find_by_keys, insert_jobs


def test_a_job_is_queued_with_its_body_beside_it(ledger: Ledger) -> None:
    [known] = put(ledger, a_job(body='{"a":1}', custom_id="c", priority=3, is_bulk=True))
    row = job_row(ledger, known.id)
    assert (row.state, row.claims, row.attempts, row.generation, row.custom_id) == ("queued", 0, 0, 1, "c")
    assert known.is_new
    assert [r.body for r in rows(ledger, "requests")] == ['{"a":1}']


def test_the_same_key_twice_in_one_call_is_one_job_and_one_of_them_is_new(ledger: Ledger) -> None:
    known = put(ledger, a_job(idempotency_key="k", body="1"), a_job(idempotency_key="k", body="2"))
    assert known[0].id == known[1].id
    assert [job.is_new for job in known] == [True, False]
    assert [r.body for r in rows(ledger, "requests")] == ["1"]


def test_the_same_key_over_two_calls_is_the_first_job_with_its_first_body(ledger: Ledger) -> None:
    [first] = put(ledger, a_job(idempotency_key="k", body="1"))
    [second] = put(ledger, a_job(idempotency_key="k", body="2"))
    assert (second.id, second.is_new) == (first.id, False)
    assert [r.body for r in rows(ledger, "requests")] == ["1"]


def test_a_known_job_tells_its_state(ledger: Ledger) -> None:
    [first] = put(ledger, a_job(idempotency_key="k"))
    record(ledger, success(claim_one(ledger, first.id)))
    [again] = put(ledger, a_job(idempotency_key="k"))
    assert again.state == "succeeded"
    with ledger.read() as connection:
        assert find_by_keys(connection, ["k", "absent"])["k"].id == first.id


def test_the_empty_key_is_a_key_as_well(ledger: Ledger) -> None:
    known = put(ledger, a_job(idempotency_key=""), a_job(idempotency_key=""))
    assert known[0].id == known[1].id
    assert len(rows(ledger, "jobs")) == 1


def test_jobs_without_a_key_are_all_new_and_come_back_in_the_order_given(ledger: Ledger) -> None:
    jobs = [a_job(idempotency_key=key) for key in ("z", None, "a", None)]
    assert [job.id for job in put(ledger, *jobs)] == [job.id for job in jobs]


def test_new_and_known_jobs_in_one_call_are_told_apart(ledger: Ledger) -> None:
    [first] = put(ledger, a_job(idempotency_key="k1", body="1"))
    found = put(
        ledger,
        a_job(idempotency_key="k2", body="2"),
        a_job(idempotency_key="k1", body="3"),
        a_job(body="4", user_metadata={"a": 1}),
        a_job(idempotency_key="k0", body="5", not_before_ms=NOW + 1),
    )
    assert [job.is_new for job in found] == [True, False, True, True]
    assert found[1].id == first.id
    assert [job.state for job in found] == ["queued", "queued", "queued", "waiting"]
    assert sorted(r.body for r in rows(ledger, "requests")) == ["1", "2", "4", "5"]
    assert [r.job_id for r in rows(ledger, "details")] == [found[2].id]


def test_an_id_that_another_key_holds_is_the_job_that_was_there_first(ledger: Ledger) -> None:
    [first] = put(ledger, a_job(idempotency_key="k1", body="1"))
    found = put(ledger, a_job(id=first.id, idempotency_key="k2", body="2"), a_job(idempotency_key="k3"))
    assert [(job.id == first.id, job.is_new) for job in found] == [(True, False), (False, True)]
    assert [r.body for r in rows(ledger, "requests", job_id=first.id)] == ["1"]


def test_every_value_of_a_job_arrives_in_its_own_column(ledger: Ledger) -> None:
    given = {
        "idempotency_key": "key",
        "batch_id": "batch",
        "position": 7,
        "custom_id": "custom",
        "source_key": "source",
        "endpoint": "https://other.test",
        "model": "the-model",
        "request_hash": "hash",
        "priority": 5,
        "is_bulk": True,
        "max_attempts": 3,
        "expires_at_ms": 2**41,
    }
    [lone, ended] = put(
        ledger, a_job(**given), a_job(ended_as=JobState.FAILED, failure_message="why"), published_at_ms=5
    )
    row = job_row(ledger, lone.id)
    assert {name: getattr(row, name) for name in given} == given
    assert (row.published_at_ms, row.created_at_ms, row.ended_at_ms, row.failure_kind) == (5, NOW, None, None)
    assert (row.is_cancel_requested, row.claims, row.losses, row.solo_losses) == (False, 0, 0, 0)
    row = job_row(ledger, ended.id)
    assert (row.state, row.failure_kind, row.failure_message) == ("failed", "invalid_request", "why")
    assert (row.published_at_ms, row.ended_at_ms) == (None, NOW)


def test_values_of_every_size_stand_beside_absent_ones(ledger: Ledger) -> None:
    facts = [
        {"expires_at_ms": None, "is_bulk": True, "max_attempts": 1, "custom_id": None},
        {"expires_at_ms": 5, "is_bulk": False, "max_attempts": None, "custom_id": '{a,"b\\\\c"}'},
        {"expires_at_ms": 2**41, "is_bulk": True, "max_attempts": 70_000, "custom_id": "NULL"},
    ]
    found = put(ledger, *(a_job(**one) for one in facts))
    kept = [job_row(ledger, job.id) for job in found]
    assert [{name: getattr(row, name) for name in facts[0]} for row in kept] == facts


def test_no_jobs_are_no_jobs(ledger: Ledger) -> None:
    assert put(ledger) == []


def test_eight_threads_with_the_same_keys_make_each_job_once(ledger: Ledger) -> None:
    keys = [f"k{i}" for i in range(40)]

    def submit(i: int) -> list[str]:
        mine = random.Random(i).sample(keys, len(keys))
        found = put(ledger, *[a_job(idempotency_key=key) for key in mine])
        return [job.id for _, job in sorted(zip(mine, found, strict=True))]

    answers = at_once(8, submit)
    assert all(answer == answers[0] for answer in answers)
    assert len(rows(ledger, "jobs")) == len(rows(ledger, "requests")) == 40


def test_names_that_a_database_cannot_hold_are_cleaned_on_the_way_in(ledger: Ledger) -> None:
    odd = "a\x00b\ud800c"
    [job, neighbour] = put(ledger, a_job(model=odd, custom_id=odd, source_key=odd), a_job())
    row = job_row(ledger, job.id)
    assert row.model == row.custom_id == row.source_key == "a�b�c"
    assert job_row(ledger, neighbour.id).state == "queued"


def test_a_key_that_no_index_holds_is_not_taken_for_an_absent_database(ledger: Ledger) -> None:
    key = "".join(random.Random(1).choices(string.printable, k=20_000))
    if not ledger.is_postgresql:
        assert put(ledger, a_job(idempotency_key=key))[0].is_new
        return
    with pytest.raises(SQLAlchemyError) as caught:
        put(ledger, a_job(idempotency_key=key))
    assert not isinstance(caught.value, DatabaseAway)
    assert key[:50] not in str(caught.value)


def test_bulk_is_written_in_chunks_and_again_changes_nothing(ledger: Ledger, clock: FakeClock) -> None:
    chunks: list[int] = []

    def jobs() -> list[object]:
        return [a_job(idempotency_key=f"k{i}") for i in range(700)]

    first = submit_many(ledger, jobs(), clock=clock, on_chunk=lambda found: chunks.append(len(found)))
    again = submit_many(ledger, jobs(), clock=clock)
    assert (first.new, first.known) == (700, 0)
    assert (again.new, again.known) == (0, 700)
    assert sum(chunks) == 700
    assert len(chunks) > 1


def test_a_lone_job_is_committed_before_it_is_published(ledger: Ledger, clock: FakeClock) -> None:
    seen: list[str] = []
    job = a_job(idempotency_key="k")
    known = submit_one(
        ledger, job, clock=clock, publish=lambda due: seen.extend(job_row(ledger, d.id).state for d in due)
    )
    assert seen == ["queued"]
    assert job_row(ledger, known.id).published_at_ms == clock.now_ms()
    submit_one(ledger, a_job(idempotency_key="k"), clock=clock, publish=lambda due: seen.append("again"))
    assert seen == ["queued"]


def test_a_lone_job_is_the_relays_when_the_broker_is_away(ledger: Ledger, clock: FakeClock) -> None:
    def away(_: object) -> None:
        raise BrokerAway("gone")

    known = submit_one(ledger, a_job(), clock=clock, publish=away)
    assert job_row(ledger, known.id).published_at_ms is None


def test_an_insert_that_runs_again_after_a_lost_answer_writes_nothing_twice(ledger: Ledger) -> None:
    jobs = [a_job(), a_job(idempotency_key=os.urandom(4).hex())]
    for _ in range(2):
        found = ledger.run(lambda c: insert_jobs(c, jobs, now_ms=NOW))
        assert [job.id for job in found] == [job.id for job in jobs]
    assert len(rows(ledger, "jobs")) == len(rows(ledger, "requests")) == 2
