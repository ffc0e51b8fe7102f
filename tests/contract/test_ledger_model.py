"""Every order of three actors' transactions on one job, on both databases: one result at most, and only legal moves.

A step is what one transaction does: its rows are locked from its first look at them. All orders are gone through;
where two of them have led to the same rows and the same memories, they go on as one, for nothing else decides what
follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from schemas.job import LEGAL_MOVES, JobState
from tests.support.ledger import ENDPOINT, NOW, a_job, give_back, setback, success
from worker.storage.claims import claim_jobs
from worker.storage.due import take_due
from worker.storage.engine import Ledger
from worker.storage.intake import insert_jobs
from worker.storage.moves import cancel_jobs, expire_jobs, retry_jobs
from worker.storage.outcomes import ClaimedJob, GiveBack, Recorded, Setback, Success
from worker.storage.tables import jobs, results, usage
from worker.storage.transitions import record_outcomes
from worker.storage.workers import release_orphans, rescue_jobs

MOVES = {(before.value, after.value) for (before, _), after in LEGAL_MOVES.items()}
TOO_LATE = NOW + 50

_LOOK = select(
    jobs,
    select(func.count()).select_from(results).scalar_subquery().label("kept"),
    select(func.count()).select_from(usage).scalar_subquery().label("paid"),
    select(func.count()).where(usage.c.is_used).scalar_subquery().label("used"),
)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the actors remember: each worker's last claim and how many it asked for, and the answers that were paid."""

    claimed: tuple[tuple[str, ClaimedJob], ...] = ()
    asked: tuple[str, ...] = ()
    paid: frozenset[int] = frozenset()


class World:
    """One job, and what the actors remember of it. It can go back."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        [known] = insert_jobs(connection, [a_job(expires_at_ms=TOO_LATE)], now_ms=NOW)
        self.id = known.id
        self.memory = Memory()
        self.row = self._look()

    @contextmanager
    def branch(self) -> Iterator[None]:
        """What is done inside is undone afterwards, in the ledger and in all memories."""
        memory, row = self.memory, self.row
        savepoint = self.connection.begin_nested()
        yield
        savepoint.rollback()
        self.memory, self.row = memory, row

    def do(self, step: str) -> None:
        """One transaction: `worker: what` or `what`, held against the invariants."""
        who, _, what = step.rpartition(": ")
        before = self.row
        outcome, recorded = None, None
        match what:
            case "claims" | "claims again":
                self._claim(who, is_repeated=what == "claims again")
            case "is rescued":
                rescue_jobs(self.connection, who, max_solo_losses=1, now_ms=NOW)
            case "has forgotten":
                release_orphans(self.connection, who, open_claims=(), now_ms=NOW)
            case "is cancelled":
                cancel_jobs(self.connection, [self.id], now_ms=NOW)
            case "is retried":
                retry_jobs(self.connection, [self.id], now_ms=NOW)
            case "expires":
                expire_jobs(self.connection, now_ms=TOO_LATE)
            case "is relayed":
                take_due(self.connection, ENDPOINT, room=1, now_ms=NOW)
            case _:
                outcome = self._outcome(who, what)
                if outcome is not None:
                    [recorded] = record_outcomes(self.connection, [outcome])
        self.row = self._look()
        if isinstance(outcome, Success):
            self.memory = replace(self.memory, paid=self.memory.paid | {outcome.claim.number})
            assert recorded is not Recorded.CLAIM_LOST, "a paid answer was not taken"
        elif outcome is not None:
            _assert_fenced(outcome, recorded, before, self.row)
        _assert_sound(before, self.row, self.memory)

    def _claim(self, who: str, *, is_repeated: bool) -> None:
        asked = self.memory.asked if is_repeated else (*self.memory.asked, who)
        token = f"{who}{asked.count(who)}"
        was_mine = self.row.state == "running" and self.row.claim_token == token
        found = claim_jobs(
            self.connection, [self.id], worker_id=who, token=token, endpoint=ENDPOINT, now_ms=NOW
        )
        assert found or not was_mine, "a claim whose answer was lost was not found"
        claimed = dict(self.memory.claimed)
        if found:
            claimed[who] = found[self.id]
            assert claimed[who].number == self.row.claims + (not was_mine)
        self.memory = replace(self.memory, asked=asked, claimed=tuple(sorted(claimed.items())))

    def _outcome(self, who: str, what: str) -> Success | Setback | GiveBack | None:
        job = dict(self.memory.claimed).get(who)
        if job is None:
            return None
        match what:
            case "succeeds":
                return success(job, worker=who)
            case "fails":
                return setback(job, worker=who, body=b"x")
            case "waits":
                return setback(job, worker=who, not_before_ms=NOW)
            case "gives back":
                return give_back(job, worker=who)
            case "gives back uncalled":
                claimed = {one: of for one, of in self.memory.claimed if one != who}
                self.memory = replace(self.memory, claimed=tuple(sorted(claimed.items())))
                return give_back(job, worker=who, was_called=False)
        raise AssertionError(what)

    def _look(self) -> Any:
        return self.connection.execute(_LOOK).one()


def _assert_fenced(outcome: Setback | GiveBack, recorded: Recorded | None, before: Any, after: Any) -> None:
    """Who holds the claim is heard, and nobody else changes anything."""
    if before.state == "running" and before.claim_token == outcome.claim.token:
        assert recorded is Recorded.APPLIED
        assert after.state != "running"
    else:
        assert recorded is Recorded.CLAIM_LOST
        assert tuple(after) == tuple(before)


def _assert_sound(before: Any, row: Any, memory: Memory) -> None:
    assert before.state == row.state or (before.state, row.state) in MOVES
    assert row.kept == row.used == (row.state == "succeeded")
    assert row.paid == len(memory.paid)
    assert (row.state == "succeeded") == bool(memory.paid), "the first success wins, however late"
    assert (row.state == "running") == (row.claim_token is not None and row.state != "succeeded")
    assert (row.ended_at_ms is not None) == JobState(row.state).is_final
    assert (row.not_before_ms is not None) == (row.state == "waiting")
    assert row.state == "running" or not row.is_cancel_requested or JobState(row.state).is_final


Actor = tuple[str, ...]

A_WORKER: dict[str, Actor] = {
    "succeeds": ("a: claims", "a: succeeds"),
    "hears nothing and asks again": ("a: claims", "a: claims again", "a: succeeds", "a: succeeds"),
    "is lost and succeeds late": ("a: claims", "a: is rescued", "a: succeeds"),
    "is lost and fails late": ("a: claims", "a: is rescued", "a: fails"),
    "forgets and succeeds late": ("a: claims", "a: has forgotten", "a: succeeds"),
    "fails": ("a: claims", "a: fails"),
    "waits and comes back": ("a: claims", "a: waits", "is relayed", "a: claims", "a: succeeds"),
    "gives back and comes back": ("a: claims", "a: gives back", "a: claims", "a: succeeds"),
    "gives back uncalled and comes back": ("a: claims", "a: gives back uncalled", "a: claims", "a: succeeds"),
}
A_SECOND_WORKER: dict[str, Actor] = {
    "succeeds": ("b: claims", "b: succeeds"),
    "fails": ("b: claims", "b: fails"),
    "waits": ("b: claims", "b: waits", "is relayed"),
    "is lost": ("b: claims", "b: is rescued", "b: succeeds"),
    "comes back": ("b: claims", "b: fails", "b: claims", "b: succeeds"),
}
A_THIRD: dict[str, Actor] = {
    "an operator who cancels and retries": ("is cancelled", "is retried", "is cancelled"),
    "an operator who retries": ("is retried", "is retried"),
    "time that is over, and an operator": ("expires", "is retried"),
    "a rescuer of both": ("a: is rescued", "b: is rescued", "a: is rescued"),
    "a third worker": ("c: claims", "c: succeeds"),
}


def explore(world: World, actors: tuple[Actor, ...], known: set[Any], path: tuple[str, ...] = ()) -> None:
    """Every order of what is left of the actors' steps."""
    here = (actors, tuple(world.row), world.memory)
    if here in known:
        return
    known.add(here)
    for i, steps in enumerate(actors):
        if not steps:
            continue
        with world.branch():
            way = (*path, steps[0])
            try:
                world.do(steps[0])
            except AssertionError as exc:
                exc.add_note(" → ".join(way))
                raise
            explore(world, (*actors[:i], steps[1:], *actors[i + 1 :]), known, way)


def company(a: str, *, is_full: bool) -> list[tuple[Actor, Actor]]:
    """Whom a worker meets: with --storm everybody, otherwise one pair, chosen so that everybody meets somebody."""
    seconds, thirds = list(A_SECOND_WORKER.values()), list(A_THIRD.values())
    if is_full:
        return list(product(seconds, thirds))
    i = list(A_WORKER).index(a)
    return [(seconds[i % len(seconds)], thirds[2 * i % len(thirds)])]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("a", A_WORKER)
def test_invariant_3_one_result_at_most_in_every_order_of_three_actors_by_legal_moves(
    ledger: Ledger, request: pytest.FixtureRequest, a: str
) -> None:
    known: set[Any] = set()
    with ledger.write() as connection:
        world = World(connection)
        for second, third in company(a, is_full=request.config.getoption("--storm")):
            explore(world, (A_WORKER[a], second, third), known)
    assert len({row for _, row, _ in known}) > 3, "nothing has happened"
