"""Jobs that were left behind at another address are found, however many jobs there are."""

from __future__ import annotations

from tests.support.ledger import ENDPOINT, NOW, a_job, claim, put, put_one
from worker.storage.engine import Ledger
from worker.storage.other_endpoints import fetch_left_elsewhere
from worker.storage.workers import end_worker, register_worker

HERE = "https://here.test"


def left(ledger: Ledger, endpoint: str = HERE, *, now_ms: int = NOW) -> dict[str, int]:
    with ledger.read() as connection:
        return fetch_left_elsewhere(connection, endpoint, now_ms=now_ms)


def test_open_jobs_of_other_endpoints_are_counted_by_endpoint(ledger: Ledger) -> None:
    put(ledger, *(a_job() for _ in range(3)))
    put(ledger, a_job(endpoint="https://other.test"), published_at_ms=NOW)
    put(ledger, a_job(endpoint="https://other.test"))
    put(ledger, a_job(endpoint=HERE))
    assert left(ledger) == {ENDPOINT: 3, "https://other.test": 2}
    assert left(ledger, ENDPOINT) == {HERE: 1, "https://other.test": 2}


def test_a_job_that_is_at_work_is_not_left_behind(ledger: Ledger) -> None:
    claim(ledger, put_one(ledger))
    assert left(ledger) == {}


def test_an_endpoint_with_a_living_worker_is_served(ledger: Ledger) -> None:
    put_one(ledger)
    ledger.run(
        lambda c: register_worker(
            c, "w1", endpoint=ENDPOINT, hostname="h", pid=1, slots=1, lease_ms=2000, now_ms=NOW
        )
    )
    assert left(ledger) == {}
    assert left(ledger, now_ms=NOW + 3_600_000) == {ENDPOINT: 1}, "it has not beaten for an hour"
    ledger.run(lambda c: end_worker(c, "w1", reason="stopped", now_ms=NOW))
    assert left(ledger) == {ENDPOINT: 1}
