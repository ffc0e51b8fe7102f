"""What an operator holds back or ends: pauses, and a whole batch cancelled in steps, on both databases."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.support.ledger import (
    NOW,
    a_job,
    at_once,
    claim,
    claim_one,
    give_back,
    job_row,
    put,
    record,
    setback,
    state,
    success,
)
from worker.storage.batches import count_states
from worker.storage.engine import Ledger
from worker.storage.moves import Cancelled, cancel_batch
from worker.storage.pauses import Pause, fetch_pause, fetch_pauses, pause, resume


@pytest.fixture
def endpoint() -> str:
    return f"https://{uuid4().hex}.test"


def paused(ledger: Ledger, endpoint: str) -> Pause | None:
    with ledger.read() as connection:
        return fetch_pause(connection, endpoint)


def test_an_endpoint_is_paused_until_it_is_resumed(ledger: Ledger, endpoint: str) -> None:
    assert paused(ledger, endpoint) is None
    assert ledger.run(lambda c: pause(c, endpoint, "it moves", NOW))
    assert paused(ledger, endpoint) == Pause(endpoint, "it moves", NOW)
    assert ledger.run(lambda c: resume(c, endpoint))
    assert paused(ledger, endpoint) is None
    assert not ledger.run(lambda c: resume(c, endpoint))


def test_the_first_pause_stays_with_its_time_and_reason(ledger: Ledger, endpoint: str) -> None:
    assert ledger.run(lambda c: pause(c, endpoint, None, NOW))
    assert not ledger.run(lambda c: pause(c, endpoint, "another", NOW + 5))
    assert paused(ledger, endpoint) == Pause(endpoint, None, NOW)


def test_a_pause_holds_for_its_endpoint_alone(ledger: Ledger, endpoint: str) -> None:
    other = endpoint + "/other"
    ledger.run(lambda c: pause(c, endpoint, "a", NOW))
    assert paused(ledger, other) is None
    ledger.run(lambda c: pause(c, other, "b", NOW + 1))
    ledger.run(lambda c: resume(c, endpoint))
    with ledger.read() as connection:
        mine = [one for one in fetch_pauses(connection) if one.endpoint.startswith(endpoint)]
    assert mine == [Pause(other, "b", NOW + 1)]


def test_of_many_who_pause_at_once_one_does(ledger: Ledger, endpoint: str) -> None:
    done = at_once(5, lambda i: ledger.run(lambda c: pause(c, endpoint, str(i), NOW)))
    assert sorted(done) == [False] * 4 + [True]
    found = paused(ledger, endpoint)
    assert found is not None
    assert found.reason == str(done.index(True))


def test_a_reason_that_no_database_can_hold_is_kept_as_far_as_it_goes(ledger: Ledger, endpoint: str) -> None:
    ledger.run(lambda c: pause(c, endpoint, "a\x00b\udcff", NOW))
    found = paused(ledger, endpoint)
    assert found is not None
    assert found.reason == "a\ufffdb\ufffd"


def cancel(ledger: Ledger, batch: str) -> Cancelled:
    return ledger.run(lambda c: cancel_batch(c, batch, now_ms=NOW + 50))


def test_a_batch_is_cancelled_in_steps_of_at_most_500_rows(ledger: Ledger) -> None:
    put(ledger, *[a_job(batch_id="b") for _ in range(1_001)], a_job(batch_id="other"))
    steps = [cancel(ledger, "b") for _ in range(4)]
    assert steps == [Cancelled(500, 0), Cancelled(500, 0), Cancelled(1, 0), Cancelled(0, 0)]
    with ledger.read() as connection:
        assert count_states(connection, "b") == {"cancelled": 1_001}
        assert count_states(connection, "other") == {"queued": 1}


def test_what_runs_is_asked_once_and_what_ended_stays(ledger: Ledger) -> None:
    ids = [job.id for job in put(ledger, *[a_job(batch_id="b") for _ in range(5)])]
    queued, waiting, running, done, failed = ids
    claims = claim(ledger, waiting, running, done, failed)
    record(ledger, setback(claims[waiting], not_before_ms=NOW + 99), success(claims[done]))
    record(ledger, setback(claims[failed]))
    assert cancel(ledger, "b") == Cancelled(ended=2, asked=1)
    assert cancel(ledger, "b") == Cancelled(0, 0)
    assert [state(ledger, id_) for id_ in (queued, waiting, running, done, failed)] == [
        "cancelled",
        "cancelled",
        "running",
        "succeeded",
        "failed",
    ]
    row = job_row(ledger, waiting)
    assert (row.ended_at_ms, row.not_before_ms, row.published_at_ms) == (NOW + 50, None, None)
    record(ledger, success(claims[running]))
    assert state(ledger, running) == "succeeded"


def test_a_job_that_was_asked_and_is_given_back_is_cancelled(ledger: Ledger) -> None:
    [job] = put(ledger, a_job(batch_id="b"))
    held = claim_one(ledger, job.id)
    assert cancel(ledger, "b") == Cancelled(0, 1)
    record(ledger, give_back(held))
    assert state(ledger, job.id) == "cancelled"


def test_a_batch_without_jobs_comes_to_nothing(ledger: Ledger) -> None:
    assert cancel(ledger, "nobody") == Cancelled(0, 0)
