"""Every order of two workers' steps on one job: one result at most, and only legal moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import pytest
from sqlalchemy import Connection

from schemas.job import LEGAL_MOVES, JobState
from tests.support.ledger import ENDPOINT, NOW, a_job, give_back, setback, success
from worker.storage.claims import claim_jobs
from worker.storage.engine import Ledger
from worker.storage.intake import insert_jobs
from worker.storage.moves import cancel_jobs, retry_jobs
from worker.storage.outcomes import ClaimedJob, Recorded
from worker.storage.records import record_outcomes
from worker.storage.tables import attempts, failure_bodies, jobs, requests, results, usage
from worker.storage.workers import rescue_jobs

MOVES = {(before.value, after.value) for (before, _), after in LEGAL_MOVES.items()}


class World:
    """One job, and what two workers remember of it. Each step is what one transaction does."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        for table in (jobs, requests, results, attempts, usage, failure_bodies):
            connection.execute(table.delete())
        [known] = insert_jobs(connection, [a_job()], now_ms=NOW)
        self.id = known.id
        self.claimed: dict[str, ClaimedJob] = {}
        self.recorded: list[Recorded] = []
        self.states = ["queued"]

    def claim(self, who: str) -> None:
        found = claim_jobs(
            self.connection, [self.id], worker_id=who, token=f"t-{who}", endpoint=ENDPOINT, now_ms=NOW
        )
        if found:
            self.claimed[who] = found[self.id]

    def record(self, who: str, make: Callable[..., Any], **how: Any) -> None:
        if who in self.claimed:
            outcome = make(self.claimed[who], worker=who, **how)
            self.recorded += record_outcomes(self.connection, [outcome])

    def rescue(self, who: str) -> None:
        rescue_jobs(self.connection, who, max_solo_losses=1, now_ms=NOW)

    def cancel(self) -> None:
        cancel_jobs(self.connection, [self.id], now_ms=NOW)

    def retry(self) -> None:
        retry_jobs(self.connection, [self.id], now_ms=NOW)

    def look(self) -> None:
        row = self.connection.execute(jobs.select()).one()
        self.states.append(row.state)
        found = self.connection.execute(results.select()).all()
        used = self.connection.execute(usage.select().where(usage.c.is_used)).all()
        paid = sum(what in (Recorded.APPLIED, Recorded.UNUSED) for what in self.recorded)
        before, after = self.states[-2:]
        assert before == after or (before, after) in MOVES, self.states
        assert len(found) == len(used) == (row.state == "succeeded"), self.states
        assert (row.state == "running") == (row.claim_token is not None and row.state != "succeeded")
        assert (row.ended_at_ms is not None) == JobState(row.state).is_final, self.states
        assert (row.not_before_ms is not None) == (row.state == "waiting")
        assert len(self.connection.execute(usage.select()).all()) <= paid


Step = Callable[[World], None]


def worker(who: str, *outcomes: Step) -> list[Step]:
    return [lambda world: world.claim(who), *outcomes]


def succeeds(who: str) -> Step:
    return lambda world: world.record(who, success)


def fails(who: str, **how: Any) -> Step:
    return lambda world: world.record(who, setback, **how)


def gives_back(who: str) -> Step:
    return lambda world: world.record(who, give_back)


def is_rescued(who: str) -> Step:
    return lambda world: world.rescue(who)


def is_cancelled(world: World) -> None:
    world.cancel()


def is_retried(world: World) -> None:
    world.retry()


A_BEHAVIOURS = {
    "succeeds": [succeeds("a")],
    "says it twice": [succeeds("a"), succeeds("a")],
    "is lost and succeeds late": [is_rescued("a"), succeeds("a")],
    "is lost and fails late": [is_rescued("a"), fails("a")],
    "fails": [fails("a")],
    "waits": [fails("a", not_before_ms=NOW)],
    "gives back and comes back": [gives_back("a"), lambda world: world.claim("a"), succeeds("a")],
}
B_BEHAVIOURS = {
    "succeeds": worker("b", succeeds("b")),
    "fails": worker("b", fails("b", body=b"x")),
    "is lost": worker("b", is_rescued("b"), succeeds("b")),
    "an operator": [is_cancelled, is_retried, is_cancelled],
    "an operator who retries": [is_retried, *worker("b", succeeds("b"))],
}


def orders(a: list[Step], b: list[Step]) -> Iterator[list[Step]]:
    """Every interleaving of the two."""
    total = len(a) + len(b)
    for places in combinations(range(total), len(a)):
        left, right = iter(a), iter(b)
        yield [next(left) if i in places else next(right) for i in range(total)]


@pytest.mark.parametrize("b", B_BEHAVIOURS)
@pytest.mark.parametrize("a", A_BEHAVIOURS)
def test_every_order_of_two_workers_ends_in_one_result_by_legal_moves(
    sqlite_ledger: Ledger, a: str, b: str
) -> None:
    for order in orders(worker("a", *A_BEHAVIOURS[a]), B_BEHAVIOURS[b]):
        with sqlite_ledger.write() as connection:
            world = World(connection)
            paid_for = 0
            for step in order:
                step(world)
                world.look()
            paid_for = sum(what in (Recorded.APPLIED, Recorded.UNUSED) for what in world.recorded)
            if Recorded.UNUSED in world.recorded:
                assert world.states[-1] == "succeeded"
                assert paid_for >= 2
