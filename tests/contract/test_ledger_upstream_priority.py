"""What an endpoint is told of a job's priority, and what a worker learns of the job's batch from the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from schemas.chat import parse_request
from tests.support.clock import FakeClock
from tests.support.house import House
from tests.support.ledger import job_row, put, rows
from tests.support.moody import MODEL, MoodyEndpoint
from worker.intake.submit import make_job
from worker.storage.batch_turns import Turn
from worker.storage.engine import Ledger


@pytest.fixture
def endpoint() -> Iterator[MoodyEndpoint]:
    with MoodyEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def open_house(
    ledger: Ledger, clock: FakeClock, tmp_path: Path, endpoint: MoodyEndpoint
) -> Iterator[Callable[..., House]]:
    opened: list[House] = []

    def make(**settings: Any) -> House:
        opened.append(House(ledger, cast(Any, endpoint), tmp_path / "house", clock, api_key="k", **settings))
        return opened[-1]

    yield make
    for house in opened:
        house.close()


def call(house: House, endpoint: MoodyEndpoint, *, fields: dict[str, Any] | None = None, **facts: Any) -> Any:
    """What the endpoint is sent as `priority` for a new job; "absent" where nothing is."""
    bodies: list[dict[str, Any]] = []
    endpoint.on_body = bodies.append
    data = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]} | (fields or {})
    job = make_job(parse_request(data), endpoint=house.endpoint, **facts)
    id_ = put(house.ledger, job)[0].id
    house.receive(id_, is_bulk=job.is_bulk).result(20)
    assert job_row(house.ledger, id_).state == "succeeded"
    assert job_row(house.ledger, id_).request_hash == job.request_hash
    assert rows(house.ledger, "requests", job_id=id_)[0].body == job.body
    [body] = bodies
    assert {**body, "priority": None} == {**data, "stream": False, "priority": None}
    return body.get("priority", "absent")


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({}, 0),
        ({"priority": 6}, 6),
        ({"batch_id": "b", "is_bulk": True}, 19),
        ({"batch_id": "b", "is_bulk": True, "priority": 0}, 10),
        ({"fields": {"priority": -5}}, -5),
        ({"fields": {"priority": 0}, "batch_id": "b", "is_bulk": True}, 0),
        ({"fields": {"tools": [{"type": "function", "function": {"name": "priority"}}]}}, 0),
    ],
)
def test_the_endpoint_is_told_that_lone_jobs_come_first_unless_the_request_says_it(
    open_house: Callable[..., House], endpoint: MoodyEndpoint, facts: dict[str, Any], told: int
) -> None:
    assert call(open_house(upstream_priority="vllm"), endpoint, **facts) == told


def test_without_the_setting_the_endpoint_is_told_nothing(
    open_house: Callable[..., House], endpoint: MoodyEndpoint
) -> None:
    house = open_house()
    assert call(house, endpoint) == "absent"
    assert call(house, endpoint, batch_id="b", is_bulk=True) == "absent"
    assert call(house, endpoint, fields={"priority": 3}) == 3


def test_answers_tell_what_the_jobs_of_their_batch_take(
    open_house: Callable[..., House], endpoint: MoodyEndpoint, ledger: Ledger
) -> None:
    house = open_house()
    for number in range(5):
        call(house, endpoint, batch_id="b", is_bulk=True, fields={"seed": number})
    with ledger.write() as connection:
        known, unknown = house.facts.describe(connection, [Turn("b"), Turn("c")])
    assert known.tokens == 3, "as the endpoint said"
    assert unknown.tokens == 1, "as long an answer as the others, to a request that is not known"
