"""Short words for what the ledger's tests do all the time: put jobs in, claim, record, look at rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Barrier, Thread
from typing import Any, TypeVar

from sqlalchemy import select

from schemas.failure import Failure, FailureKind
from worker.ids import new_id
from worker.storage import tables
from worker.storage.claims import claim_jobs
from worker.storage.engine import Ledger
from worker.storage.intake import KnownJob, NewJob, insert_jobs
from worker.storage.outcomes import Claim, ClaimedJob, GiveBack, Outcome, Recorded, Setback, Success, Usage
from worker.storage.transitions import record_outcomes

T = TypeVar("T")
ENDPOINT = "https://endpoint.test"
NOW = 1_000_000


def a_job(**facts: Any) -> NewJob:
    """A job nobody has seen before."""
    facts = {"id": new_id(), "body": '{"model":"m"}', "model": "m", "request_hash": "h"} | facts
    return NewJob(**({"endpoint": ENDPOINT} | facts))


def put(
    ledger: Ledger, *jobs: NewJob, now_ms: int = NOW, published_at_ms: int | None = None
) -> list[KnownJob]:
    """Writes `jobs` down in one transaction."""
    return ledger.run(lambda c: insert_jobs(c, jobs, now_ms=now_ms, published_at_ms=published_at_ms))


def put_one(ledger: Ledger, **facts: Any) -> str:
    """The id of one new job."""
    return put(ledger, a_job(**facts))[0].id


def claim(
    ledger: Ledger,
    *ids: str,
    token: str = "t1",
    worker: str = "w1",
    endpoint: str = ENDPOINT,
    now_ms: int = NOW,
    are_alone: bool = False,
) -> dict[str, ClaimedJob]:
    """What `ids` came to for this worker and token."""
    return ledger.run(
        lambda c: claim_jobs(
            c, ids, worker_id=worker, token=token, endpoint=endpoint, now_ms=now_ms, are_alone=are_alone
        )
    )


def claim_one(ledger: Ledger, id_: str, **how: Any) -> ClaimedJob:
    """The claim of a job that is to be had."""
    return claim(ledger, id_, **how)[id_]


def record(ledger: Ledger, *outcomes: Outcome) -> list[Recorded]:
    return ledger.run(lambda c: record_outcomes(c, outcomes))


def success(job: ClaimedJob, *, worker: str = "w1", ended_at_ms: int = NOW + 10, **facts: Any) -> Success:
    values = {
        "claim": replace(job.claim, worker_id=worker),
        "started_at_ms": job.claimed_at_ms,
        "ended_at_ms": ended_at_ms,
        "latency_ms": 7,
        "http_status": 200,
        "request_id": "req-1",
        "finish_reason": "stop",
        "answer": "Hello",
        "reasoning": None,
        "is_reasoning_unclosed": False,
        "raw": b'{"choices":[]}',
        "usage": Usage("m", 3, 4, 7, 1, 2),
    }
    return Success(**(values | facts))


def setback(
    job: ClaimedJob,
    *,
    kind: FailureKind = FailureKind.SERVER_ERROR,
    not_before_ms: int | None = None,
    burns: bool = True,
    worker: str = "w1",
    ended_at_ms: int = NOW + 10,
    is_blocked: bool = False,
    **failure: Any,
) -> Setback:
    return Setback(
        claim=replace(job.claim, worker_id=worker),
        started_at_ms=job.claimed_at_ms,
        ended_at_ms=ended_at_ms,
        latency_ms=5,
        failure=Failure(**({"kind": kind, "message": "no", "http_status": 500} | failure)),
        not_before_ms=not_before_ms,
        burns=burns,
        is_blocked=is_blocked,
    )


def give_back(
    job: ClaimedJob, *, worker: str = "w1", ended_at_ms: int = NOW + 10, was_called: bool = True
) -> GiveBack:
    return GiveBack(replace(job.claim, worker_id=worker), job.claimed_at_ms, ended_at_ms, was_called)


def a_claim(job_id: str, token: str = "t1", *, number: int = 1) -> ClaimedJob:
    """A claim on a job that no ledger need know."""
    claim = Claim(job_id, token, number, generation=1, worker_id="w1")
    return ClaimedJob(claim, "", "m", 0, 0, None, None, NOW, is_bulk=False)


def with_token(outcome: Any, token: str) -> Any:
    """The same outcome from somebody with another claim."""
    return replace(outcome, claim=replace(outcome.claim, token=token))


def of_job(outcome: Any, job_id: str) -> Any:
    """The same outcome of another job."""
    return replace(outcome, claim=replace(outcome.claim, job_id=job_id))


def job_row(ledger: Ledger, id_: str) -> Any:
    return rows(ledger, "jobs", id=id_)[0]


def state(ledger: Ledger, id_: str) -> str:
    return str(job_row(ledger, id_).state)


def rows(ledger: Ledger, table: str, **where: Any) -> Sequence[Any]:
    """The rows of a table, by primary key."""
    found = getattr(tables, table)
    statement = select(found).order_by(*found.primary_key.columns)
    for name, value in where.items():
        statement = statement.where(found.c[name] == value)
    with ledger.read() as connection:
        return connection.execute(statement).all()


def at_once(n: int, work: Callable[[int], T]) -> list[T]:
    """What `work(0) … work(n - 1)` return, all let go at the same moment; an error in one is raised here."""
    barrier = Barrier(n)
    answers: list[Any] = [None] * n
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            barrier.wait(10)
            answers[i] = work(i)
        except BaseException as exc:
            errors.append(exc)

    threads = [Thread(target=run, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return answers
