"""Claims on both databases: the only way to a call, and to each call once."""

from __future__ import annotations

import pytest

from schemas.failure import FailureKind
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    at_once,
    claim,
    claim_one,
    give_back,
    job_row,
    put,
    put_one,
    record,
    setback,
    success,
)
from worker.storage.claims import claim_jobs
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_jobs


def test_a_claim_brings_the_body_and_fences_the_job(ledger: Ledger) -> None:
    id_ = put_one(ledger, body='{"x":1}', model="m1", max_attempts=4, is_bulk=True)
    job = claim_one(ledger, id_, token="t", worker="w", now_ms=NOW + 5)
    assert (job.body, job.model, job.max_attempts, job.is_bulk) == ('{"x":1}', "m1", 4, True)
    assert (job.number, job.burnt, job.claim.generation) == (1, 0, 1)
    row = job_row(ledger, id_)
    assert (row.state, row.worker_id, row.claim_token, row.claimed_at_ms) == ("running", "w", "t", NOW + 5)
    assert row.published_at_ms is None


def test_a_job_claimed_by_another_token_is_not_to_be_had(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    claim_one(ledger, id_, token="t1")
    assert claim(ledger, id_, token="t2", worker="w2") == {}
    assert job_row(ledger, id_).claims == 1


def test_a_claim_repeated_with_its_own_token_is_the_same_claim(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    first, again = claim_one(ledger, id_), claim_one(ledger, id_)
    assert (first.token, first.number) == (again.token, again.number) == ("t1", 1)


def test_an_own_token_does_not_bring_back_a_job_that_has_ended(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    record(ledger, success(claim_one(ledger, id_)))
    assert claim(ledger, id_) == {}


def test_a_job_of_another_endpoint_is_not_to_be_had(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    assert claim(ledger, id_, endpoint="https://other.test") == {}


def test_a_job_whose_time_is_over_is_not_to_be_had(ledger: Ledger) -> None:
    id_ = put_one(ledger, expires_at_ms=NOW + 10)
    assert claim(ledger, id_, now_ms=NOW + 10) == {}
    assert claim(ledger, id_, now_ms=NOW + 9).keys() == {id_}


def test_a_waiting_job_is_not_to_be_had(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    record(ledger, setback(claim_one(ledger, id_), not_before_ms=NOW + 100))
    assert claim(ledger, id_, token="t2") == {}


@pytest.mark.parametrize("how", ["succeeded", "failed", "cancelled"])
def test_a_job_that_has_ended_is_not_to_be_had(ledger: Ledger, how: str) -> None:
    id_ = put_one(ledger)
    if how == "cancelled":
        ledger.run(lambda c: cancel_jobs(c, [id_], now_ms=NOW))
    else:
        job = claim_one(ledger, id_)
        record(ledger, success(job) if how == "succeeded" else setback(job, kind=FailureKind.REJECTED))
    assert job_row(ledger, id_).state == how
    assert claim(ledger, id_, token="t2") == {}


def test_an_unknown_id_and_no_id_are_nothing(ledger: Ledger) -> None:
    assert claim(ledger, "nobody") == {}
    assert claim(ledger) == {}


def test_the_next_claim_has_the_next_number_and_knows_what_was_spent(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    record(ledger, give_back(claim_one(ledger, id_)))
    job = claim_one(ledger, id_, token="t2")
    assert (job.number, job.burnt) == (2, 0)


def test_two_workers_after_the_same_ids_get_each_of_them_once(ledger: Ledger) -> None:
    ids = [job.id for job in put(ledger, *[a_job() for _ in range(200)])]

    def take(i: int) -> list[str]:
        mine: list[str] = []
        order = ids if i % 2 else ids[::-1]
        for start in range(0, 200, 20):
            chunk = order[start : start + 20]
            mine += ledger.run(
                lambda c, chunk=chunk, start=start: claim_jobs(
                    c, chunk, worker_id=f"w{i}", token=f"w{i}:{start}", endpoint=ENDPOINT, now_ms=NOW
                )
            )
        return mine

    taken = [id_ for mine in at_once(4, take) for id_ in mine]
    assert sorted(taken) == sorted(ids)
    assert {job_row(ledger, id_).claims for id_ in ids} == {1}


def test_two_claims_of_one_id_at_the_same_moment_are_one_claim(ledger: Ledger) -> None:
    for _ in range(10):
        id_ = put_one(ledger)
        answers = at_once(4, lambda i, id_=id_: claim(ledger, id_, token=f"t{i}", worker=f"w{i}"))
        assert sum(len(answer) for answer in answers) == 1
