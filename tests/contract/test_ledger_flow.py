"""The rate of an endpoint's last minutes and its open jobs by batch, on both databases."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support.ledger import ENDPOINT, NOW, a_job, claim_one, put, put_one, record, setback, success
from worker.clock import SystemClock
from worker.operations.expected_end import expect_end_of
from worker.policy.budgets import Limit
from worker.policy.expected_end import Flow
from worker.storage.batches import make_batch
from worker.storage.budgets import BudgetGuard
from worker.storage.engine import Ledger
from worker.storage.flow import count_open_by_batch, fetch_flow


def answer(ledger: Ledger, *, at_ms: int, **facts: object) -> None:
    id_ = put_one(ledger, **facts)
    record(ledger, success(claim_one(ledger, id_, token=id_), ended_at_ms=at_ms))


def test_the_flow_counts_what_succeeded_at_this_endpoint_since_then(ledger: Ledger) -> None:
    for at_ms in (NOW, NOW + 5, NOW + 9):
        answer(ledger, at_ms=at_ms)
    record(ledger, setback(claim_one(ledger, put_one(ledger), token="t")))
    with ledger.read() as connection:
        assert fetch_flow(connection, ENDPOINT, since_ms=NOW + 1) == Flow(2, NOW + 5, idle_since_ms=NOW + 9)
        assert fetch_flow(connection, "elsewhere", since_ms=0) == Flow(0, None)


def test_an_endpoint_in_a_call_is_not_idle(ledger: Ledger) -> None:
    answer(ledger, at_ms=NOW)
    claim_one(ledger, put_one(ledger))
    with ledger.read() as connection:
        assert fetch_flow(connection, ENDPOINT, since_ms=NOW) == Flow(1, NOW, idle_since_ms=None)
        assert fetch_flow(connection, "elsewhere", since_ms=NOW) == Flow(0, None, idle_since_ms=None)


def test_a_break_between_two_runs_makes_the_end_of_the_second_no_later(ledger: Ledger) -> None:
    now_ms = SystemClock().now_ms()
    make = partial(make_batch, kind="run", label="r", endpoint=ENDPOINT, idempotency_key=None, now_ms=now_ms)
    batch = ledger.run(partial(make, batch_id="a"))
    for i in range(10):
        answer(ledger, at_ms=now_ms - 200_000 + i * 1_000)
    put(ledger, *[a_job(batch_id="a", position=i) for i in range(1, 11)])
    found = expect_end_of(ledger, batch)
    assert found is not None and found.end_ms - now_ms < 15_000


def test_open_jobs_are_counted_by_batch_wherever_they_wait(ledger: Ledger) -> None:
    put(ledger, a_job(batch_id="b"), a_job(batch_id="b", not_before_ms=NOW + 5), a_job())
    put(ledger, a_job(batch_id="b"), published_at_ms=NOW)
    claim_one(ledger, put_one(ledger, batch_id="b"))
    with ledger.read() as connection:
        assert count_open_by_batch(connection, ENDPOINT) == {"b": 3, "": 1}


@pytest.mark.parametrize(("is_at_budget", "in_s"), [(False, 20), (True, 10)])
def test_the_end_of_a_batch_waits_for_the_turns_of_others_but_not_of_those_at_their_budget(
    ledger: Ledger, is_at_budget: bool, in_s: int
) -> None:
    now_ms = SystemClock().now_ms()
    batches = [
        ledger.run(
            partial(
                make_batch,
                batch_id=id_,
                kind="submit",
                label=id_,
                endpoint=ENDPOINT,
                idempotency_key=None,
                now_ms=now_ms,
            )
        )
        for id_ in ("a", "b")
    ]
    assert expect_end_of(ledger, batches[0]) is None
    for i in range(10):
        answer(ledger, at_ms=now_ms - 10_000 + i * 1_100)
    put(ledger, *[a_job(batch_id=id_, position=i) for id_ in "ab" for i in range(1, 11)])
    if is_at_budget:
        guard = BudgetGuard()
        ledger.run(partial(guard.set_budget, batch_id="b", limit=Limit(tokens=0), now_ms=now_ms))
        job = claim_one(ledger, put_one(ledger, batch_id="b"))
        assert ledger.run(partial(guard.balance, settled=[], claimed=[job], now_ms=now_ms)) == [job]
    found = expect_end_of(ledger, batches[0])
    assert found is not None
    assert abs(found.end_ms - now_ms - in_s * 1000) < in_s * 200
    assert (expect_end_of(ledger, batches[1]) is None) is is_at_budget, "nobody knows when it is raised"
