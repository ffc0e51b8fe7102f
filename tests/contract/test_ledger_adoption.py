"""Messages that carry their own request, on their way into the ledger: each is a row, whatever it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from schemas.chat import InvalidRequest
from schemas.job import JobState
from tests.support.house import MODEL, House
from tests.support.ledger import ENDPOINT, NOW, a_job, job_row, put_one, rows, state
from worker.attempt.report import Verdict
from worker.intake.messages import Asked, build_job, build_refused
from worker.storage.batches import ensure_open_batches, make_batch
from worker.storage.engine import Ledger
from worker.storage.intake import NewJob, adopt_jobs

BASE = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}


def nest(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def read(house: House, asked: Asked, task_id: str = "task-1") -> NewJob:
    try:
        return build_job(
            task_id, asked, endpoint=house.endpoint, default_model=None, allow_zero_temperature=False
        )
    except InvalidRequest as exc:
        return build_refused(task_id, asked, exc.errors, endpoint=house.endpoint)


@pytest.mark.parametrize(
    "what",
    [
        {"options": {"max_attempts": 2**31}},
        {"options": {"max_attempts": 2**63}},
        {"options": {"metadata": {"x": float("nan")}}},
        {"options": {"metadata": {"x": "a\0b"}}},
        {"options": {"metadata": {"x": "\ud800"}}},
        {"options": {"metadata": {"\ud800": 1}}},
        {"options": {"metadata": {"x": nest(5000)}}},
        {"options": {"metadata": {"x": "y" * 300_000}}},
        {"options": {"metadata": {"x": {1, 2}}}},
        {"options": {"custom_id": "a\0b"}},
        {"options": {"custom_id": "\ud800"}},
        {"options": {"batch": "a\0b"}},
        {"options": {"x" * 100_000: 1}},
        {"expires_at_ms": 10**20},
        {"not_before_ms": 10**20},
        {"not_before_ms": -(10**20)},
        {"priority": "high"},
        {"priority": 2.5},
        {"priority": True},
        {"envelope": {"chain": float("inf")}},
        {"envelope": {"callbacks": [nest(5000)]}},
        {"request": BASE | {"seed": 2**70}},
        {"request": BASE | {"seed": float(2**70)}},
        {"request": BASE | {"metadata": {"n": 2**70}}},
        {"request": BASE | {"metadata": {"x": float("nan")}}},
        {"request": BASE | {"metadata": {"x": nest(101)}}},
        {"request": BASE | {"metadata": {"x": nest(300)}}},
        {"request": BASE | {"metadata": {"x": nest(100_000)}}},
        {"request": BASE | {"messages": [{"role": "user", "content": "a\ud800b"}]}},
        {"request": BASE | {"model": "a\ud800"}},
        {"request": BASE | {"model": "a\0"}},
        {"request": BASE | {"model": "m" * 10_000}},
        {"request": BASE | {"\ud800": 1}},
        {"request": BASE | {"x": "y" * 100_000, "temperature": 0}},
        {"request": None},
        {"request": [1]},
        {"request": "hello"},
    ],
)
def test_a_message_out_of_bounds_is_a_refused_row_with_a_sentence(
    build: Callable[..., House], what: dict[str, Any]
) -> None:
    house = build()
    job = read(house, Asked(**{"request": BASE} | what))
    assert house.adopt(job).verdict is Verdict.FAILED
    row = job_row(house.ledger, "task-1")
    assert (row.state, row.failure_kind) == ("failed", "invalid_request")
    assert 0 < len(row.failure_message) <= 4000
    assert len(rows(house.ledger, "requests")[0].body) <= 16 * 1024


@pytest.mark.parametrize("task_id", ["a" * 9000, "a\0b", "a\ud800", "a\nb", ""])
def test_a_message_whose_id_no_row_can_have_is_a_row_all_the_same(
    build: Callable[..., House], task_id: str
) -> None:
    house = build()
    job = read(house, Asked(request=BASE), task_id)
    house.adopt(job)
    [row] = rows(house.ledger, "jobs")
    assert (row.id, row.state) == (read(house, Asked(request=BASE), task_id).id, "failed")
    assert row.id.startswith("odd-")
    assert "task_id" in row.failure_message


@pytest.mark.parametrize(
    "odd", [{"max_attempts": 2**70}, {"priority": object()}, {"user_metadata": {"x": {1, 2}}}]
)
@pytest.mark.parametrize("is_refused", [True, False])
def test_a_row_that_the_database_does_not_take_is_written_bare(
    build: Callable[..., House], odd: dict[str, Any], is_refused: bool
) -> None:
    """Whatever a bound has missed: the message must not vanish."""
    house = build()
    job = read(house, Asked(request=None if is_refused else BASE))
    house.adopt(replace(job, **odd))
    row = job_row(house.ledger, job.id)
    assert (row.state, row.failure_kind, row.model) == ("failed", "invalid_request", "unknown")
    assert "database" in row.failure_message


def test_a_neighbour_of_such_a_row_is_served(build: Callable[..., House]) -> None:
    house = build()
    sound = read(house, Asked(request=BASE))
    house.adopt(replace(read(house, Asked(request=BASE), "bad"), priority=2**70))
    assert house.adopt(sound).verdict is Verdict.SUCCEEDED


def test_what_names_a_batch_of_a_file_is_refused_and_what_names_one_of_messages_joins(ledger: Ledger) -> None:
    make = partial(make_batch, label="x", endpoint=ENDPOINT, idempotency_key=None, now_ms=NOW)
    ledger.run(lambda c: make(c, "batch_run", kind="run"))
    ledger.run(lambda c: make(c, "batch_file", kind="submit"))
    ledger.run(partial(ensure_open_batches, batch_ids=["tasks"], endpoint=ENDPOINT, now_ms=NOW))
    wanted = {
        name: a_job(batch_id=name, body='"' + "x" * 20_000 + '"')
        for name in ("batch_run", "batch_file", "tasks", "new")
    }
    ledger.run(partial(adopt_jobs, new=list(wanted.values()), now_ms=NOW))
    found = {name: job_row(ledger, job.id) for name, job in wanted.items()}
    assert {name: (row.state, row.batch_id) for name, row in found.items()} == {
        "batch_run": ("failed", ""),
        "batch_file": ("failed", ""),
        "tasks": ("queued", "tasks"),
        "new": ("queued", "new"),
    }
    assert "antrean run" in found["batch_run"].failure_message
    bodies = {row.job_id: row.body for row in rows(ledger, "requests")}
    assert (bodies[wanted["batch_run"].id], len(bodies[wanted["new"].id])) == ("null", 20_002)
    assert {row.id for row in rows(ledger, "batches")} == {"batch_run", "batch_file", "tasks", "new"}


def test_of_an_id_that_has_a_row_nothing_is_written(ledger: Ledger) -> None:
    id_ = put_one(ledger, body='{"model":"ours"}', batch_id="mine")
    late = a_job(
        id=id_,
        batch_id="theirs",
        body='{"model":"theirs"}',
        ended_as=JobState.EXPIRED,
        idempotency_key=f"task:{id_}",
    )
    ledger.run(partial(adopt_jobs, new=[late], now_ms=NOW))
    assert state(ledger, id_) == "queued"
    assert job_row(ledger, id_).batch_id == "mine"
    assert [row.body for row in rows(ledger, "requests")] == ['{"model":"ours"}']
    assert rows(ledger, "batches") == []
