"""Where the open jobs stand, on both databases: by endpoint, by what they wait for, and for one batch alone."""

from __future__ import annotations

import re
from functools import partial

from sqlalchemy import update

from schemas.failure import FailureKind
from schemas.job import JobState
from tests.contract.test_ledger_wants import a_batch, want
from tests.contract.test_ledger_window import _plans as plans_of
from tests.contract.test_ledger_workers import register
from tests.support.ledger import ENDPOINT, NOW, a_job, claim, put, put_one, record, setback
from worker.policy.budgets import Limit
from worker.settings import Settings
from worker.storage.batches import fetch_batch
from worker.storage.budgets import BudgetGuard
from worker.storage.calls import fetch_oldest_call
from worker.storage.engine import Ledger
from worker.storage.identity import fetch_place
from worker.storage.open_jobs import _IS_HELD, OldestCall, OpenJobs, Waits, _count, fetch_open_jobs
from worker.storage.open_models import count_first_models, count_open_models
from worker.storage.tables import budgets, is_in
from worker.storage.workers import CallsNow, fetch_workers, note_calls

OTHER = "https://other.test"


def look(ledger: Ledger, batch_id: str | None = None) -> OpenJobs:
    with ledger.read() as connection:
        return fetch_open_jobs(connection, None if batch_id is None else fetch_batch(connection, batch_id))


def wait_after(ledger: Ledger, id_: str, kind: FailureKind, due_ms: int, *, is_blocked: bool = False) -> None:
    job = claim(ledger, id_)[id_]
    record(ledger, setback(job, kind=kind, not_before_ms=due_ms, is_blocked=is_blocked))


def test_an_empty_ledger_has_nothing_open(ledger: Ledger) -> None:
    assert look(ledger) == OpenJobs(queued={}, waits=[], held={}, oldest_call=None)
    batch = a_batch(ledger, "b")
    assert look(ledger, batch) == OpenJobs(queued={}, waits=[], held={}, oldest_call=None)


def test_queued_jobs_are_counted_by_endpoint_handed_out_or_not(ledger: Ledger) -> None:
    put(ledger, a_job(), a_job(), published_at_ms=NOW)
    put(ledger, a_job(), a_job(endpoint=OTHER))
    assert look(ledger).queued == {ENDPOINT: 3, OTHER: 1}
    open_ = a_batch(ledger, "joined by messages", kind="tasks")
    put(ledger, a_job(batch_id=open_), a_job(batch_id=open_, endpoint=OTHER))
    assert look(ledger, open_).queued == {ENDPOINT: 1, OTHER: 1}, "each message has an endpoint of its own"


def test_waiting_jobs_are_told_apart_by_what_they_wait_for(ledger: Ledger) -> None:
    a, b, c, d = (put_one(ledger) for _ in range(4))
    put_one(ledger, not_before_ms=NOW + 900)
    wait_after(ledger, a, FailureKind.TIMEOUT, NOW + 500)
    wait_after(ledger, b, FailureKind.TIMEOUT, NOW + 300)
    wait_after(ledger, c, FailureKind.SERVER_ERROR, NOW + 400, is_blocked=True)
    wait_after(ledger, d, FailureKind.SERVER_ERROR, NOW + 700)
    assert look(ledger).waits == [
        Waits(ENDPOINT, "timeout", False, 2, NOW + 300),
        Waits(ENDPOINT, "server_error", True, 1, NOW + 400),
        Waits(ENDPOINT, "server_error", False, 1, NOW + 700),
        Waits(ENDPOINT, None, False, 1, NOW + 900),
    ]


def test_jobs_of_a_run_that_was_stopped_are_held_and_nothing_else(ledger: Ledger) -> None:
    held, living = a_batch(ledger, "held", is_held=True), a_batch(ledger, "living")
    want(ledger, held, "a", "b", "shared")
    put_one(ledger, batch_id=held, position=9, not_before_ms=NOW + 100)
    want(ledger, living, "c", "shared")
    assert look(ledger).held == {ENDPOINT: 3}
    assert look(ledger).queued == {ENDPOINT: 2}, "the shared one has gone over to the run that lives"
    assert look(ledger).waits == []
    assert look(ledger, held).held == {ENDPOINT: 3}
    assert look(ledger, held).queued == {ENDPOINT: 1}
    assert (look(ledger, living).held, look(ledger, living).queued) == ({}, {ENDPOINT: 2})


def test_the_oldest_call_is_told_with_the_worker_that_makes_it(ledger: Ledger) -> None:
    batch = a_batch(ledger, "b")
    register(ledger, "w1", endpoint=ENDPOINT, hostname="box", pid=4711)
    young, old = want(ledger, batch, "young")[0].id, put_one(ledger)
    claim(ledger, old, now_ms=NOW + 100)
    claim(ledger, young, now_ms=NOW + 200)
    assert look(ledger).oldest_call == OldestCall(old, ENDPOINT, NOW + 100, "box", 4711)
    assert look(ledger, batch).oldest_call == OldestCall(young, ENDPOINT, NOW + 200, "box", 4711)
    other = put_one(ledger)
    claim(ledger, other, worker="gone", now_ms=NOW + 50)
    assert look(ledger).oldest_call == OldestCall(other, ENDPOINT, NOW + 50, None, None)


def test_a_job_in_hand_that_waits_for_a_permit_is_no_call(ledger: Ledger) -> None:
    batch = a_batch(ledger, "b")
    register(ledger, "w1", endpoint=ENDPOINT, hostname="box", pid=4711)
    called, waits = put_one(ledger), want(ledger, batch, "waits")[0].id
    claim(ledger, called, now_ms=NOW)
    claim(ledger, waits, now_ms=NOW + 1)
    ledger.run(partial(note_calls, worker_id="w1", calls=CallsNow(0, None)))
    assert look(ledger).oldest_call is None
    ledger.run(partial(note_calls, worker_id="w1", calls=CallsNow(1, NOW + 60_000)))
    assert look(ledger).oldest_call == OldestCall(called, ENDPOINT, NOW + 60_000, "box", 4711)
    with ledger.read() as connection:
        assert fetch_oldest_call(connection, [called, waits]) == (called, NOW + 60_000)
        [one] = fetch_workers(connection)
    assert (one.running, one.slots_in_use, one.in_hand) == (2, 1, 1)
    ledger.run(partial(note_calls, worker_id="w1", calls=CallsNow(0, None)))
    with ledger.read() as connection:
        assert fetch_oldest_call(connection, [called, waits]) is None


def test_jobs_of_a_batch_at_its_budget_are_counted_apart(ledger: Ledger) -> None:
    batch = a_batch(ledger, "b")
    first = want(ledger, batch, "first")[0].id
    want(ledger, batch, "second")
    put_one(ledger)
    wait_after(ledger, first, FailureKind.TIMEOUT, NOW + 5000)
    limit = Limit(tokens=1)
    ledger.run(partial(BudgetGuard().set_budget, batch_id=batch, limit=limit, now_ms=NOW))
    assert (look(ledger).at_budget, look(ledger).queued) == ({}, {ENDPOINT: 2})
    ledger.run(lambda connection: connection.execute(update(budgets).values(waits_since_ms=NOW)))
    assert (look(ledger).at_budget, look(ledger).queued) == ({ENDPOINT: 2}, {ENDPOINT: 1})
    assert (look(ledger, batch).at_budget, look(ledger, batch).queued) == ({ENDPOINT: 2}, {})
    assert look(ledger).waits == look(ledger, batch).waits == []


def test_a_worker_is_silent_when_its_last_beat_is_older_than_its_lease(ledger: Ledger) -> None:
    register(ledger, "w1", lease_ms=30_000)
    with ledger.read() as connection:
        [one] = fetch_workers(connection)
    assert (one.lease_ms, one.is_silent(NOW + 30_000), one.is_silent(NOW + 30_001)) == (30_000, False, True)


def test_the_place_of_a_ledger_is_its_file_or_its_server_without_a_password(
    ledger: Ledger, ledger_settings: Settings
) -> None:
    with ledger.read() as connection:
        place = fetch_place(connection)
    if not ledger.is_postgresql:
        assert place == str(ledger_settings.home / "antrean.db")
        return
    url = ledger.engine.url
    assert place.startswith("postgresql://")
    assert place.endswith(f"/{url.database}")
    secret = url.set(password="s3cret")
    with ledger.read() as connection:
        connection.engine.url = secret
        assert "s3cret" not in fetch_place(connection)
        connection.engine.url = url


def test_a_look_walks_no_table_of_jobs_as_a_whole(sqlite_ledger: Ledger) -> None:
    a_batch(sqlite_ledger, "b")
    with sqlite_ledger.read() as connection:
        batch = fetch_batch(connection, "b")
    for asked in (None, batch):
        plan = plans_of(sqlite_ledger, partial(fetch_open_jobs, batch=asked))
        assert re.search(r"(SCAN|SEARCH) jobs USING (COVERING )?INDEX", plan)
        assert not re.search(r"SCAN jobs(?! USING)", plan), plan
    counted = plans_of(sqlite_ledger, lambda c: _count(c, batch, is_in(JobState.QUEUED) & ~_IS_HELD))
    assert "SEARCH jobs USING COVERING INDEX ix_jobs_batch (batch_id=? AND state=?)" in counted


def test_models_of_open_jobs_are_counted_of_one_endpoint_and_not_those_that_workers_have(
    ledger: Ledger,
) -> None:
    batch = a_batch(ledger, "b")
    put(ledger, a_job(model="m1"), a_job(model="m2", batch_id=batch), a_job(model="m1", endpoint=OTHER))
    put(ledger, a_job(model="m1"), published_at_ms=NOW)
    waits = put_one(ledger, model="m3")
    wait_after(ledger, waits, FailureKind.TIMEOUT, NOW + 500)
    with ledger.read() as connection:
        assert count_open_models(connection, ENDPOINT) == {"m1": 1, "m2": 1, "m3": 1}
        assert count_first_models(connection, ENDPOINT, at_most=10) == {"m1": 1, "m2": 1}
        assert count_first_models(connection, ENDPOINT, at_most=10, batch_id=batch) == {"m2": 1}
        assert sum(count_first_models(connection, ENDPOINT, at_most=1).values()) == 1
    put(ledger, a_job(model="m9", batch_id=a_batch(ledger, "held", is_held=True)))
    with ledger.read() as connection:
        assert "m9" not in {
            **count_open_models(connection, ENDPOINT),
            **count_first_models(connection, ENDPOINT, at_most=10),
        }
