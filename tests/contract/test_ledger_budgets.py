"""The budget of a batch holds: reserved with the claim, settled with the record; on both databases."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import update

from tests.support.house import House
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    at_once,
    give_back,
    job_row,
    put,
    rows,
    setback,
    state,
    success,
)
from tests.support.writing import in_one_group
from worker.attempt.report import Verdict
from worker.policy.budgets import Amount, Limit
from worker.policy.cost import LARGEST_COST_NANO, Price, Rates, compute_cost
from worker.storage.batches import fetch_held, make_batch
from worker.storage.budgets import Budget, BudgetGuard, fetch_budget, wake_budgets
from worker.storage.engine import Ledger
from worker.storage.group_commit import write_group
from worker.storage.moves import cancel_batch
from worker.storage.outcomes import ClaimedJob, Usage
from worker.storage.reply import Reply
from worker.storage.tables import budgets, jobs
from worker.storage.workers import rescue_jobs
from worker.storage.writer import GroupWriter
from worker.storage.writer_requests import ClaimJob, RecordOutcome

BODY = json.dumps({"model": "m", "messages": [], "max_tokens": 60})
RESERVED = len(BODY) + 60  # of each job


def open_batch(ledger: Ledger, limit: Limit, *, guard: BudgetGuard | None = None, jobs: int = 5) -> list[str]:
    """A batch with a budget, and the ids of its jobs in their order."""
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
    set_budget(ledger, limit, guard=guard)
    return sorted(
        job.id
        for job in put(ledger, *[a_job(batch_id="b", position=i, body=BODY) for i in range(1, jobs + 1)])
    )


def set_budget(ledger: Ledger, limit: Limit, *, guard: BudgetGuard | None = None) -> Budget:
    return ledger.run(partial((guard or BudgetGuard()).set_budget, batch_id="b", limit=limit, now_ms=NOW))


def budget(ledger: Ledger) -> Budget:
    with ledger.read() as connection:
        found = fetch_budget(connection, "b")
    assert found is not None
    return found


def group(
    ledger: Ledger,
    claims: Sequence[str] = (),
    outcomes: Sequence[Any] = (),
    *,
    worker: str = "w1",
    token: str = "t1",
    guard: BudgetGuard | None = None,
    now_ms: int = NOW,
) -> dict[str, ClaimedJob]:
    """One group of a writer: what it claimed."""
    requests = [
        *(RecordOutcome(outcome, Reply()) for outcome in outcomes),
        *(ClaimJob(job_id, Reply()) for job_id in claims),
    ]
    return ledger.run(
        partial(
            write_group,
            group=requests,
            worker_id=worker,
            endpoint=ENDPOINT,
            token=token,
            open_claims={},
            alone=(),
            guard=guard or BudgetGuard(),
            now_ms=now_ms,
        )
    ).claimed


def held(ledger: Ledger) -> list[str]:
    with ledger.read() as connection:
        return fetch_held(connection, ENDPOINT)


def answered(job: ClaimedJob, tokens: int, *, cost_nano: int | None = None, worker: str = "w1") -> Any:
    usage = Usage("m", tokens, 0, tokens, cost_nano=cost_nano)
    return success(replace(job, claim=replace(job.claim, worker_id=worker)), usage=usage)


def test_a_job_without_room_is_not_claimed_and_its_batch_waits(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit(tokens=2 * RESERVED + 5))
    claimed = group(ledger, ids[:4])
    assert sorted(claimed) == ids[:2]
    for id_ in ids[2:4]:
        row = job_row(ledger, id_)
        assert (row.state, row.claims, row.claim_token, row.published_at_ms) == ("queued", 0, None, None)
    found = budget(ledger)
    assert (found.reserved.tokens, found.spent.tokens) == (2 * RESERVED, 0)
    assert (found.waits_since_ms, found.wanted.tokens) == (NOW, RESERVED)
    assert held(ledger) == ["b"]


def test_what_was_reserved_is_replaced_by_what_was_taken(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit(tokens=10 * RESERVED))
    first, second = group(ledger, ids[:2]).values()
    group(ledger, outcomes=[answered(first, 11)])
    assert (budget(ledger).spent.tokens, budget(ledger).reserved.tokens) == (11, RESERVED)
    group(ledger, outcomes=[setback(second)])
    assert (budget(ledger).spent.tokens, budget(ledger).reserved.tokens) == (11, 0)
    assert rows(ledger, "reservations") == []


def test_in_one_group_what_ended_makes_room_for_what_begins(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit(tokens=RESERVED + 20))
    [first] = group(ledger, ids[:2]).values()
    assert sorted(group(ledger, ids[1:3], [answered(first, 20)], token="t2")) == [ids[1]]
    assert budget(ledger).spent == Amount(20, 0)


def test_nonsense_of_an_endpoint_about_its_tokens_fits_into_the_sums_of_a_budget(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit(tokens=10 * RESERVED))
    first, second = group(ledger, ids[:2]).values()
    nonsense = 2**53 - 1
    cost = compute_cost(Price(Rates(10**7, 10**7)), prompt_tokens=nonsense, completion_tokens=nonsense)
    for job in (first, second):
        group(ledger, outcomes=[answered(job, nonsense, cost_nano=cost)])
    assert [state(ledger, id_) for id_ in ids[:2]] == ["succeeded", "succeeded"]
    spent = budget(ledger).spent
    assert spent.tokens > 10 * RESERVED and spent.nano == cost == LARGEST_COST_NANO


def test_an_answer_that_does_not_say_its_tokens_took_what_was_reserved(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit(tokens=10 * RESERVED))
    [job] = group(ledger, ids[:1]).values()
    group(ledger, outcomes=[success(job, usage=Usage("m"))])
    assert budget(ledger).spent.tokens == RESERVED


def test_an_answer_without_a_completion_is_spent_too(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit(tokens=10 * RESERVED))
    [job] = group(ledger, ids[:1]).values()
    group(ledger, outcomes=[replace(setback(job, not_before_ms=NOW + 5), usage=Usage("m", 3, 4, 7))])
    assert budget(ledger).spent.tokens == 7


def test_a_repeated_record_is_spent_once(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit(tokens=10 * RESERVED))
    [job] = group(ledger, ids[:1]).values()
    for _ in range(2):
        group(ledger, outcomes=[answered(job, 9)])
    assert budget(ledger).spent.tokens == 9


def test_a_claim_that_is_made_again_after_a_lost_commit_reserves_once(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit(tokens=2 * RESERVED))
    for _ in range(2):
        assert sorted(group(ledger, ids[:3])) == ids[:2]
    assert budget(ledger).reserved.tokens == 2 * RESERVED


def test_a_batch_at_its_budget_goes_on_when_there_is_room_and_when_it_is_raised(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit(tokens=2 * RESERVED + 5))
    first, second = group(ledger, ids[:3]).values()
    group(ledger, outcomes=[answered(first, 5)])
    assert held(ledger) == ["b"], "one of many calls in flight is not worth a try"
    group(ledger, outcomes=[answered(second, RESERVED)])
    assert held(ledger) == []
    [third] = group(ledger, ids[2:4], token="t2").values()
    group(ledger, outcomes=[answered(third, RESERVED)])
    assert held(ledger) == ["b"]
    assert set_budget(ledger, Limit(tokens=10 * RESERVED)).spent.tokens == 2 * RESERVED + 5
    assert held(ledger) == []
    assert sorted(group(ledger, ids[3:], token="t3")) == ids[3:]


def test_a_batch_without_open_jobs_waits_for_no_budget(ledger: Ledger) -> None:
    """Nobody is told to raise the budget of a batch that was cancelled."""
    ids = open_batch(ledger, Limit(tokens=5))
    assert group(ledger, ids) == {}
    assert budget(ledger).waits_since_ms == NOW
    ledger.run(partial(cancel_batch, batch_id="b", now_ms=NOW))
    assert budget(ledger).waits_since_ms is None


def test_the_reservations_of_a_dead_worker_come_back(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit(tokens=2 * RESERVED))
    group(ledger, ids[:2], worker="dead")
    assert group(ledger, ids[2:3], token="t2") == {}
    ledger.run(partial(rescue_jobs, worker_id="dead", max_solo_losses=3, now_ms=NOW))
    assert (budget(ledger).reserved.tokens, held(ledger)) == (0, [])
    assert sorted(group(ledger, ids, token="t3")) == ids[:2]


def test_a_late_answer_of_a_worker_that_was_taken_for_dead_is_spent(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit(tokens=9 * RESERVED))
    [job] = group(ledger, ids[:1], worker="dead").values()
    ledger.run(partial(rescue_jobs, worker_id="dead", max_solo_losses=3, now_ms=NOW))
    [again] = group(ledger, ids[:1], token="t2").values()
    group(ledger, outcomes=[answered(job, 5, worker="dead")])
    assert budget(ledger).spent.tokens == 5
    group(ledger, outcomes=[answered(again, 6)])
    assert (budget(ledger).spent.tokens, budget(ledger).reserved.tokens) == (11, 0)


def test_a_claim_that_another_version_ended_keeps_no_room_and_a_beat_lets_the_batch_go_on(
    ledger: Ledger,
) -> None:
    ids = open_batch(ledger, Limit(tokens=RESERVED))
    group(ledger, ids[:2])
    ledger.run(
        lambda connection: connection.execute(
            update(jobs).where(jobs.c.id == ids[0]).values(state="queued", claim_token=None, worker_id=None)
        )
    )
    assert (budget(ledger).reserved.tokens, held(ledger)) == (0, ["b"])
    assert ledger.run(partial(wake_budgets, now_ms=NOW)) == 1
    assert ledger.run(partial(wake_budgets, now_ms=NOW)) == 0
    assert held(ledger) == []


def test_a_budget_in_dollars_is_reserved_at_the_price_and_settled_with_the_cost(ledger: Ledger) -> None:
    guard = BudgetGuard(lambda model: Price(Rates(1_000, 2_000)))
    reserved = len(BODY) + 2 * 60
    ids = open_batch(ledger, Limit(nano=2 * reserved), guard=guard)
    claimed = group(ledger, ids[:3], guard=guard)
    assert sorted(claimed) == ids[:2]
    assert budget(ledger).reserved.nano == 2 * reserved
    group(ledger, outcomes=[answered(claimed[ids[0]], 9, cost_nano=4)], guard=guard)
    assert budget(ledger).spent == Amount(9, 4)
    group(ledger, outcomes=[answered(claimed[ids[1]], 9, cost_nano=None)], guard=guard)
    assert budget(ledger).spent == Amount(18, 4 + reserved), "a cost that is not known is what was reserved"


def test_without_a_price_nothing_is_claimed_for_dollars_and_it_is_tried_again_after_a_minute(
    ledger: Ledger,
) -> None:
    ids = open_batch(ledger, Limit(nano=10**12))
    assert group(ledger, ids) == {}
    found = budget(ledger)
    assert (found.waits_since_ms, found.wanted.nano) == (NOW, None)
    ledger.run(partial(wake_budgets, now_ms=NOW + 59_999))
    assert held(ledger) == ["b"]
    ledger.run(partial(wake_budgets, now_ms=NOW + 60_000))
    assert held(ledger) == []
    priced = BudgetGuard(lambda model: Price(Rates(1, 1)))
    assert sorted(group(ledger, ids, guard=priced, now_ms=NOW + 60_000)) == ids


def test_calls_in_flight_are_reserved_for_when_a_budget_comes_later(ledger: Ledger) -> None:
    ids = open_batch(ledger, Limit())
    ledger.run(lambda connection: connection.execute(budgets.delete()))
    [first, _] = group(ledger, ids[:2]).values()
    group(ledger, outcomes=[answered(first, 30)])
    found = set_budget(ledger, Limit(tokens=2 * RESERVED))
    assert (found.spent.tokens, found.reserved.tokens) == (30, RESERVED)
    assert group(ledger, ids[2:], token="t2") == {}


def test_what_answers_took_lately_bounds_those_without_a_bound_of_their_own(ledger: Ledger) -> None:
    guard = BudgetGuard()
    unbounded = json.dumps({"model": "m", "messages": []})
    open_batch(ledger, Limit(tokens=10**9), guard=guard, jobs=0)
    ids = [
        job.id
        for job in put(ledger, *[a_job(batch_id="b", position=i, body=unbounded) for i in range(1, 25)])
    ]
    claimed = group(ledger, ids[:22], guard=guard)
    assert budget(ledger).reserved.tokens == 22 * (len(unbounded) + 4096)
    answers = [success(job, usage=Usage("m", 1, 100, 101)) for job in claimed.values()]
    group(ledger, outcomes=answers, guard=guard)
    group(ledger, ids[22:23], token="t2", guard=guard)
    assert budget(ledger).reserved.tokens == len(unbounded) + 125
    # A worker that has seen no answers yet knows it from the ledger.
    group(ledger, ids[23:], token="t3", guard=BudgetGuard())
    assert budget(ledger).reserved.tokens == 2 * (len(unbounded) + 125)


def test_a_batch_without_a_budget_reserves_nothing(ledger: Ledger) -> None:
    id_ = put(ledger, a_job(batch_id="other"))[0].id
    assert list(group(ledger, [id_])) == [id_]
    assert rows(ledger, "reservations") == rows(ledger, "budgets") == []


def test_several_workers_at_once_never_pass_a_budget(ledger: Ledger) -> None:
    """Each claims, takes up to what it reserved, and records; some claims are given back."""
    ids = open_batch(ledger, Limit(tokens=37 * RESERVED), jobs=240)
    over: list[int] = []

    def work(number: int) -> int:
        rng, name, taken = random.Random(number), f"w{number}", 0
        mine = ids[number::4]
        for step in range(0, len(mine), 6):
            claimed = list(group(ledger, mine[step : step + 6], worker=name, token=f"{name}:{step}").values())
            found = budget(ledger)
            if found.spent.tokens + found.reserved.tokens > 37 * RESERVED:
                over.append(found.spent.tokens)
            outcomes: list[Any] = []
            for job in claimed:
                if rng.random() < 0.2:
                    outcomes.append(give_back(job, worker=name))
                else:
                    tokens = rng.randint(1, RESERVED)
                    taken += tokens
                    outcomes.append(answered(job, tokens, worker=name))
            group(ledger, outcomes=outcomes, worker=name, token=f"{name}:{step}'")
        return taken

    taken = sum(at_once(4, work))
    assert not over
    assert taken == budget(ledger).spent.tokens == sum(usage.total_tokens for usage in rows(ledger, "usage"))
    assert taken <= 37 * RESERVED
    assert budget(ledger).reserved.tokens == 0


def test_a_worker_tells_a_job_without_room_from_none_and_calls_no_endpoint(
    build: Callable[..., House],
) -> None:
    house = build()
    id_ = house.put(batch_id="b", is_bulk=True)
    house.ledger.run(partial(BudgetGuard().set_budget, batch_id="b", limit=Limit(tokens=1), now_ms=NOW))
    assert house.execute(id_) is Verdict.NO_CLAIM
    assert (state(house.ledger, id_), house.simulator.stats()["calls"]) == ("queued", 0)
    assert not house.writer.open_claims
    house.ledger.run(partial(BudgetGuard().set_budget, batch_id="b", limit=Limit(tokens=10**6), now_ms=NOW))
    assert house.execute(id_) is Verdict.SUCCEEDED
    [usage] = rows(house.ledger, "usage")
    assert budget(house.ledger).spent.tokens == usage.total_tokens


@pytest.mark.parametrize("count", [2, 5])
def test_a_group_writer_keeps_a_budget(writer: GroupWriter, ledger: Ledger, count: int) -> None:
    ids = open_batch(ledger, Limit(tokens=count * RESERVED), jobs=8)
    replies: list[Reply[ClaimedJob | None]] = [Reply() for _ in ids]
    with in_one_group(writer):
        for id_, reply in zip(ids, replies, strict=True):
            writer.begin_claim(id_, reply)
    claimed = [reply.result() for reply in replies]
    assert [one is not None for one in claimed] == [True] * count + [False] * (8 - count)
    assert sorted(writer.open_claims) == ids[:count]
