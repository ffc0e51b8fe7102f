"""A budget that a batch gets while its jobs are worked on: no claim and no answer is missed; on both databases."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.support.ledger import ENDPOINT, NOW, a_job, at_once, put, rows, success
from tests.support.processes import wait_until
from tests.support.writing import in_background
from worker.policy.budgets import Limit
from worker.storage.batches import make_batch
from worker.storage.budgets import Budget, BudgetGuard, fetch_budget
from worker.storage.engine import Ledger
from worker.storage.group_commit import write_group
from worker.storage.outcomes import ClaimedJob, Usage
from worker.storage.reply import Reply
from worker.storage.writer_requests import ClaimJob, RecordOutcome

BODY = json.dumps({"model": "m", "messages": [], "max_tokens": 60})
RESERVED = len(BODY) + 60  # of each job


def make_jobs(ledger: Ledger, count: int) -> list[str]:
    """The ids of so many new jobs, in a batch without a budget."""
    ledger.run(
        partial(
            make_batch,
            batch_id="b",
            kind="submit",
            label="b",
            endpoint=ENDPOINT,
            idempotency_key=None,
            now_ms=NOW,
        )
    )
    made = [a_job(batch_id="b", position=i, body=BODY) for i in range(1, count + 1)]
    return sorted(job.id for job in put(ledger, *made))


def group(
    connection: Connection, *, claims: Sequence[str] = (), outcomes: Sequence[Any] = (), worker: str = "w1"
) -> dict[str, ClaimedJob]:
    """What a group of a writer claims. It is not committed."""
    requests = [
        *(RecordOutcome(outcome, Reply()) for outcome in outcomes),
        *(ClaimJob(job_id, Reply()) for job_id in claims),
    ]
    return write_group(
        connection,
        requests,
        worker_id=worker,
        endpoint=ENDPOINT,
        token=f"{worker}:{claims[:1]}",
        open_claims={},
        alone=(),
        guard=BudgetGuard(),
        now_ms=NOW,
    ).claimed


def answered(job: ClaimedJob, tokens: int, *, worker: str = "w1") -> Any:
    return success(job, worker=worker, usage=Usage("m", 0, tokens, tokens))


def set_budget(ledger: Ledger, limit: Limit) -> Budget:
    return ledger.run(partial(BudgetGuard().set_budget, batch_id="b", limit=limit, now_ms=NOW))


def fetch(ledger: Ledger) -> Budget:
    with ledger.read() as connection:
        found = fetch_budget(connection, "b")
    assert found is not None
    return found


def waits_for_a_lock(ledger: Ledger) -> bool:
    """Whether a transaction of PostgreSQL waits. In SQLite, all wait for the one that writes."""
    if not ledger.is_postgresql:
        return True
    with ledger.read() as connection:
        return bool(connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


@pytest.mark.parametrize("what", ["a claim", "an answer"])
def test_a_budget_that_is_set_while_another_transaction_commits_misses_nothing_of_it(
    ledger: Ledger, what: str
) -> None:
    ids = make_jobs(ledger, 3)
    [first] = ledger.run(partial(group, claims=ids[:1])).values()
    is_set = Event()

    def set_it() -> Budget:
        try:
            return set_budget(ledger, Limit(tokens=2 * RESERVED))
        finally:
            is_set.set()

    with ledger.write() as connection:
        if what == "a claim":
            assert list(group(connection, claims=ids[1:2])) == ids[1:2]
        else:
            group(connection, outcomes=[answered(first, 30)])
        join = in_background(set_it)
        wait_until(lambda: is_set.is_set() or waits_for_a_lock(ledger), what="the budget waits")
    found = join()
    assert isinstance(found, Budget)
    expected = (0, 2 * RESERVED) if what == "a claim" else (30, 0)
    assert (found.spent.tokens, found.reserved.tokens) == expected
    assert len(ledger.run(partial(group, claims=ids[2:]))) == (0 if what == "a claim" else 1)


def test_a_claim_that_waits_for_a_new_budget_reserves_of_it(ledger: Ledger) -> None:
    ids = make_jobs(ledger, 2)
    with ledger.write() as connection:
        BudgetGuard().set_budget(connection, "b", Limit(tokens=RESERVED), now_ms=NOW)
        join = in_background(lambda: ledger.run(partial(group, claims=ids)))
        wait_until(lambda: waits_for_a_lock(ledger), what="the claim waits")
    assert list(join()) == ids[:1]


def test_a_budget_that_comes_while_several_workers_are_at_work_is_never_passed(ledger: Ledger) -> None:
    ids = make_jobs(ledger, 240)
    is_set = Event()
    limit = 60 * RESERVED

    def work(number: int) -> int:
        if number == 4:
            try:
                set_budget(ledger, Limit(tokens=limit))
            finally:
                is_set.set()
            return 0
        rng, name, taken = random.Random(number), f"w{number}", 0
        mine = ids[number:240:4]
        for step in range(0, len(mine), 6):
            if step == 12:  # so far 48 jobs at most, which have room
                assert is_set.wait(30)
            claimed = ledger.run(partial(group, claims=mine[step : step + 6], worker=name))
            outcomes = [answered(job, rng.randint(1, RESERVED), worker=name) for job in claimed.values()]
            taken += sum(one.usage.total_tokens for one in outcomes)
            ledger.run(partial(group, outcomes=outcomes, worker=name))
        return taken

    taken = sum(at_once(5, work))
    found = fetch(ledger)
    assert taken == found.spent.tokens == sum(usage.total_tokens for usage in rows(ledger, "usage"))
    assert found.reserved.tokens == 0
    assert limit / 2 < taken <= limit
