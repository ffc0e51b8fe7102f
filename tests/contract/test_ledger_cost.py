"""What an answer cost is kept with its tokens, and each sum says how much of it is not known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from schemas.failure import Failure, FailureKind, Spent
from tests.support.clock import FakeClock
from tests.support.house import MODEL, House
from tests.support.ledger import ENDPOINT, NOW, claim_one, job_row, put_one, record, rows, setback, success
from worker.attempt.judge import Judgement
from worker.attempt.outcomes import make_setback
from worker.cli.main import app
from worker.policy.budgets import Amount, Limit
from worker.policy.cost import LARGEST_COST_NANO, LARGEST_COUNT, CostSum, Price, Rates
from worker.settings import load_settings
from worker.storage.batch_status import fetch_status
from worker.storage.batches import fetch_batch, make_batch
from worker.storage.budgets import BudgetGuard, fetch_budget
from worker.storage.claims import claim_jobs
from worker.storage.engine import Ledger
from worker.storage.job_list import Choice, iterate_jobs
from worker.storage.migrating import prepare_ledger
from worker.storage.outcomes import Success, Usage
from worker.storage.prune_survey import survey
from worker.storage.pruning import OfBatch
from worker.storage.reading import fetch_endings
from worker.storage.story import fetch_story
from worker.storage.usage_sums import UsageBy, iterate_usage
from worker.storage.writer import GroupWriter
from worker.upkeep.heartbeat import FindPastPrice, Heartbeat
from worker.upkeep.presence import Presence
from worker.upkeep.spool import SpoolFile


def put_batch(ledger: Ledger) -> None:
    ledger.run(
        lambda connection: make_batch(
            connection,
            "b",
            kind="submit",
            label="b",
            endpoint="e",
            idempotency_key=None,
            now_ms=NOW,
        )
    )


def answer(ledger: Ledger, cost_nano: int | None, *, token: str) -> str:
    id_ = put_one(ledger, batch_id="b")
    usage = Usage("m", 3, 4, 7, cost_nano=cost_nano)
    record(ledger, success(claim_one(ledger, id_, token=token), usage=usage))
    return id_


def test_sums_hold_what_is_known_and_count_what_is_not(ledger: Ledger) -> None:
    put_batch(ledger)
    for i, cost_nano in enumerate((2**40, 5, None)):
        answer(ledger, cost_nano, token=f"t{i}")
    expected = CostSum(2**40 + 5, unknown=1, answered=3)
    with ledger.read() as connection:
        for by in UsageBy:
            [one] = iterate_usage(connection, by)
            assert one.cost == expected
        found = fetch_batch(connection, "b")
        assert found is not None
        assert fetch_status(connection, found).cost == expected
    assert survey(ledger, OfBatch("b")).total.cost == expected


def test_a_job_tells_what_its_answer_cost(ledger: Ledger) -> None:
    put_batch(ledger)
    known, unknown = answer(ledger, 1234, token="t1"), answer(ledger, None, token="t2")
    costs = {job.id: job.cost_nano for job in iterate_jobs(ledger, Choice())}
    with ledger.read() as connection:
        ended = {one.id: one.cost_nano for one in fetch_endings(connection, since_ms=0)}
        story = fetch_story(connection, known)
    assert costs == ended == {known: 1234, unknown: None}
    assert story is not None and story.result is not None
    assert (story.result.cost_nano, story.attempts[0].cost_nano) == (1234, 1234)


def test_an_older_worker_leaves_the_cost_unknown(ledger: Ledger) -> None:
    """It names no such column when it writes."""
    put_batch(ledger)
    id_ = answer(ledger, 5, token="t1")
    with ledger.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO usage (job_id, number, batch_id, model, prompt_tokens, completion_tokens, total_tokens,"
            " cached_tokens, reasoning_tokens, is_used, created_at_ms)"
            f" VALUES ('{id_}', 2, 'b', 'm', 1, 1, 2, 0, 0, false, {NOW})"
        )
    with ledger.read() as connection:
        [one] = iterate_usage(connection, UsageBy.MODEL)
    assert one.cost == CostSum(5, unknown=1, answered=2)


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    file = tmp_path / "prices.toml"
    file.write_text(f'[models."{MODEL}"]\ninput = 1\noutput = 2\n')
    return file


def test_a_workers_answer_is_recorded_with_its_cost(build: Callable[..., House], prices: Path) -> None:
    house = build(prices_file=prices)
    house.execute(house.put())
    [usage] = rows(house.ledger, "usage")
    assert usage.cost_nano == 1000 * usage.prompt_tokens + 2000 * usage.completion_tokens > 0


def test_absurd_counts_of_tokens_have_a_cost_that_can_be_summed(ledger: Ledger) -> None:
    """A defect of an endpoint must not make all later sums fail."""
    put_batch(ledger)
    price = Price(Rates(2_500_000, 10_000_000))
    for i in range(3):
        job = claim_one(ledger, put_one(ledger, batch_id="b"), token=f"t{i}")
        spent = Spent(None, 2**53 - 1, 2**53 - 1, 2**53 - 1, cached_tokens=2**53 - 1)
        failure = Failure(FailureKind.BAD_RESPONSE, "no choices", spent=spent)
        judged = Judgement(not_before_ms=None, burns=True, is_blocked=False)
        times: Any = {"started_at_ms": NOW, "ended_at_ms": NOW, "latency_s": 1.0}
        record(ledger, make_setback(job, failure, judged, find_price=lambda *_: price, **times))
    with ledger.read() as connection:
        [one] = iterate_usage(connection, UsageBy.MODEL)
    assert one.cost_nano == 3 * (2**31 - 1) * 12_500


def test_costs_beyond_64_bits_are_summed_and_told_to_be_absurd(ledger: Ledger) -> None:
    put_batch(ledger)
    for i in range(3):
        answer(ledger, LARGEST_COST_NANO, token=f"t{i}")
    answer(ledger, 7, token="t3")
    expected = CostSum(3 * LARGEST_COST_NANO + 7, answered=4)
    with ledger.read() as connection:
        for by in UsageBy:
            [one] = iterate_usage(connection, by)
            assert (one.cost, one.absurd) == (expected, 3)
        found = fetch_batch(connection, "b")
        assert found is not None
        assert fetch_status(connection, found).cost == expected
    assert survey(ledger, OfBatch("b")).total.cost == expected
    set_it = partial(BudgetGuard().set_budget, batch_id="b", limit=Limit(nano=1), now_ms=NOW)
    assert ledger.run(set_it).spent.nano == LARGEST_COST_NANO


def test_absurd_bounds_of_requests_can_be_reserved(ledger: Ledger) -> None:
    """A budget without a limit reserves as well: its batch may get one."""
    put_batch(ledger)
    price = Price(Rates(10**12, 10**12))
    guard = BudgetGuard(lambda _: price)
    ledger.run(partial(guard.set_budget, batch_id="b", limit=Limit(), now_ms=NOW))
    body = json.dumps({"model": "m", "messages": [], "max_tokens": 2**64 - 1})
    ids = [put_one(ledger, batch_id="b", position=i, body=body) for i in range(6)]
    claimed = ledger.run(
        partial(claim_jobs, ids=ids, worker_id="w", token="t", endpoint=ENDPOINT, now_ms=NOW)
    )
    balanced = partial(guard.balance, settled=[], claimed=claimed.values(), now_ms=NOW)
    assert (len(claimed), ledger.run(balanced)) == (6, [])
    with ledger.read() as connection:
        found = fetch_budget(connection, "b")
    assert found is not None
    assert found.reserved == Amount(6 * LARGEST_COUNT, 6 * LARGEST_COUNT * 10**9)


def test_usage_says_once_that_numbers_are_absurd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTREAN_HOME", str(tmp_path / "home"))
    ledger = prepare_ledger(load_settings(_env_file=None))
    put_batch(ledger)
    for i in range(2):
        answer(ledger, LARGEST_COST_NANO, token=f"t{i}")
    for format_ in ([], ["--json"], ["--csv"]):
        done = CliRunner().invoke(app, ["usage", *format_], catch_exceptions=False)
        assert done.exit_code == 0
        assert " ".join(done.stderr.split()).count("2 answers told absurd numbers of tokens") == 1
        if format_ == ["--json"]:
            assert json.loads(done.stdout)["total"]["cost_usd"] == pytest.approx(2 * 2**63 / 1e9)


def test_a_workers_answer_of_an_unknown_price_has_no_cost(build: Callable[..., House]) -> None:
    house = build()
    house.execute(house.put())
    assert [usage.cost_nano for usage in rows(house.ledger, "usage")] == [None]


def test_a_defect_of_the_prices_costs_no_answer_that_is_paid_for(
    build: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = build()

    def fail(*_: object, **__: object) -> None:
        raise ImportError("no descriptor left")

    monkeypatch.setattr(house.route.prices, "find", fail)
    id_ = house.put()
    house.execute(id_)
    assert job_row(house.ledger, id_).state == "succeeded"
    assert [usage.cost_nano for usage in rows(house.ledger, "usage")] == [None]


def test_an_answer_without_a_completion_has_its_cost_too(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    record(ledger, replace(setback(job), usage=Usage("m", 3, 4, 7, cost_nano=9)))
    assert [usage.cost_nano for usage in rows(ledger, "usage")] == [9]


@pytest.fixture
def record_leftover(
    ledger: Ledger, writer: GroupWriter, clock: FakeClock, tmp_path: Path
) -> Callable[[Success, FindPastPrice], int | None]:
    """Returns the cost of an answer that a dead process left, after the next worker's first beat."""

    def leave_and_record(success: Success, find_price: FindPastPrice) -> int | None:
        dead = SpoolFile(tmp_path / "spool", "dead")
        assert dead.keep(success)
        dead._fd, descriptor = None, dead._fd  # its process ends, and the kernel lets its lock go
        assert descriptor is not None
        os.close(descriptor)
        Heartbeat(
            ledger,
            writer,
            SpoolFile(tmp_path / "spool", "me"),
            Presence(tmp_path / "workers", "me"),
            clock,
            endpoint=ENDPOINT,
            slots=lambda: 4,
            lease_s=2.0,
            beat_s=0.3,
            spool_folder=tmp_path / "spool",
            max_solo_losses=3,
            find_price=find_price,
        ).beat()
        [usage] = rows(ledger, "usage")
        cost_nano: int | None = usage.cost_nano
        return cost_nano

    return leave_and_record


RecordLeftover = Callable[[Success, FindPastPrice], int | None]


def test_an_answer_that_a_dead_process_left_in_its_spool_is_priced_when_it_is_recorded(
    ledger: Ledger, record_leftover: RecordLeftover
) -> None:
    job = claim_one(ledger, put_one(ledger), token="t1")
    left = success(job, usage=Usage("m", 3, 4, 7, cost_nano=77))
    assert record_leftover(left, lambda _, *models, at_ms: Price(Rates(1_000, 2_000))) == 3 + 2 * 4


def test_an_answer_left_in_a_spool_has_the_price_of_the_model_that_its_job_asked_for(
    build: Callable[..., House], prices: Path, record_leftover: RecordLeftover
) -> None:
    """An endpoint may call its model otherwise in an answer; the price is looked up under both names."""
    house = build(prices_file=prices)
    job = claim_one(house.ledger, house.put(), token="t1", endpoint=house.endpoint)
    left = success(job, usage=Usage(f"{MODEL}-2026-11", 3, 4, 7))
    assert record_leftover(left, house.routes.find_past_price) == 3 * 1000 + 4 * 2000


@pytest.mark.parametrize(
    ("called", "expected"),
    [("cheap", 3 * 1 + 4 * 2), ("dear", 3 * 10 + 4 * 20), ("gone", None)],
)
def test_an_answer_left_in_a_spool_has_the_price_of_the_endpoint_that_was_called(
    ledger: Ledger, record_leftover: RecordLeftover, called: str, expected: int | None
) -> None:
    def find_price(endpoint: str, *models: str, at_ms: int) -> Price | None:
        assert (models, at_ms) == (("m-2026", "m"), NOW + 10)
        return {"cheap": Price(Rates(1_000, 2_000)), "dear": Price(Rates(10_000, 20_000))}.get(endpoint)

    job = claim_one(ledger, put_one(ledger), token="t1")
    left = replace(success(job, usage=Usage("m-2026", 3, 4, 7)), endpoint=called)
    assert record_leftover(left, find_price) == expected
