"""A key, an id or a name that another request has: the first stays as it is, and the producer is told."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.chat import InvalidRequest, hash_request
from schemas.job import Due
from tests.support.clock import FakeClock
from tests.support.ledger import a_job, at_once, put, rows
from worker.errors import InputError
from worker.intake.submit import submit_many, submit_one
from worker.storage.engine import Ledger
from worker.storage.intake import NewJob

HI, ELSE = '{"messages":["Hi."]}', '{"messages":["Something else."]}'


def asking(body: str, **facts: Any) -> NewJob:
    return a_job(body=body, request_hash=hash_request(body), **facts)


def test_a_key_that_another_request_has_is_told_and_nothing_of_it_is_written(ledger: Ledger) -> None:
    first, other = asking(HI, idempotency_key="k"), asking(ELSE, idempotency_key="k", user_metadata={"a": 1})
    assert [known.taken_for is None for known in put(ledger, first, other)] == [True, False]
    known = put(ledger, other, asking(HI, idempotency_key="k"))
    assert {job.id for job in known} == {first.id}
    assert [job.taken_for is None for job in known] == [False, True]
    assert first.request_hash[:12] in str(known[0].taken_for)
    assert [row.body for row in rows(ledger, "requests")] == [HI]
    assert rows(ledger, "details") == []


def test_a_key_of_another_endpoint_is_told_as_well(ledger: Ledger) -> None:
    put(ledger, asking(HI, idempotency_key="k"))
    [known] = put(ledger, asking(HI, idempotency_key="k", endpoint="https://elsewhere"))
    assert known.taken_for is not None


def test_the_same_id_for_another_request_is_an_error_and_nothing_is_written_or_published(
    ledger: Ledger, clock: FakeClock
) -> None:
    published: list[Due] = []
    first = asking(HI, id="order-7", idempotency_key="task:order-7")
    other = asking(ELSE, id="order-7", idempotency_key="task:order-7", user_metadata={"a": 1})
    submit_one(ledger, first, clock=clock, publish=published.extend)
    with pytest.raises(InvalidRequest, match="task_id: order-7 ") as caught:
        submit_one(ledger, other, clock=clock, publish=published.extend)
    for request in (first, other):
        assert request.request_hash[:12] in str(caught.value)
    assert "Something" not in str(caught.value)
    assert (len(published), len(rows(ledger, "jobs")), rows(ledger, "details")) == (1, 1, [])
    assert [row.body for row in rows(ledger, "requests")] == [HI]
    again = asking(HI, id="order-7", idempotency_key="task:order-7")
    assert submit_one(ledger, again, clock=clock, publish=None).id == "order-7"


def test_the_id_of_a_job_that_came_another_way_is_not_given_to_another_request(
    ledger: Ledger, clock: FakeClock
) -> None:
    put(ledger, asking(HI, id="x", idempotency_key="batch:1"))
    same = asking(HI, id="x", idempotency_key="task:x")
    assert submit_one(ledger, same, clock=clock, publish=None).id == "x"
    with pytest.raises(InvalidRequest, match="task_id: x "):
        submit_one(ledger, asking(ELSE, id="x", idempotency_key="task:x"), clock=clock, publish=None)


def test_a_custom_id_names_one_request_of_a_batch_and_makes_no_doubles(
    ledger: Ledger, clock: FakeClock
) -> None:
    def hand_over(id_: str, body: str, batch: str = "b", name: str | None = "n") -> str:
        job = asking(body, id=id_, idempotency_key=f"task:{id_}", batch_id=batch, custom_id=name)
        return submit_one(ledger, job, clock=clock, publish=None).id

    assert hand_over("1", HI) == "1"
    with pytest.raises(InvalidRequest, match="custom_id") as caught:
        hand_over("2", ELSE)
    assert '"n"' in str(caught.value) and "job 1 " in str(caught.value)
    assert hand_over("3", HI) == "3", "the same request under the same name is another job"
    assert hand_over("3", HI) == hand_over("3", HI) == "3", "the same id is the same job"
    assert hand_over("4", ELSE, batch="c") == "4"
    assert hand_over("5", ELSE, name="m") == "5"
    assert hand_over("6", ELSE, batch="") == "6", "alone, a name holds nothing"
    assert hand_over("7", HI, batch="") == "7"
    with pytest.raises(InvalidRequest, match="task_id: 1 "):
        hand_over("1", ELSE)
    assert {row.id for row in rows(ledger, "jobs")} == {"1", "3", "4", "5", "6", "7"}


def test_of_two_who_give_a_name_to_two_requests_at_once_one_is_told(ledger: Ledger, clock: FakeClock) -> None:
    def hand_over(n: int) -> str | None:
        job = asking(f'{{"n":{n}}}', id=f"t{n}", idempotency_key=f"task:t{n}", batch_id="b", custom_id="n")
        try:
            return submit_one(ledger, job, clock=clock, publish=None).id
        except InvalidRequest:
            return None

    taken = [id_ for id_ in at_once(8, hand_over) if id_ is not None]
    assert [row.id for row in rows(ledger, "jobs")] == taken
    assert len(taken) == 1


def test_bulk_with_a_key_that_another_request_has_is_an_error_that_names_it(
    ledger: Ledger, clock: FakeClock
) -> None:
    submit_many(ledger, [asking(HI, idempotency_key="k")], clock=clock)
    with pytest.raises(InputError) as caught:
        submit_many(ledger, [asking(HI, idempotency_key="j"), asking(ELSE, idempotency_key="k")], clock=clock)
    (problem,) = caught.value.problems
    assert '"k"' in problem
