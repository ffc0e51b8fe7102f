"""The one place where jobs change state, on both databases: legal moves are made whole, others not at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, update

from schemas.failure import FailureKind
from schemas.job import FIRST_STATES, LEGAL_MOVES, TARGETS, JobState, Move, is_legal
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_claim,
    a_job,
    claim,
    claim_one,
    job_row,
    put,
    put_one,
    record,
    rows,
    setback,
    state,
)
from worker.storage import doctor_repairs
from worker.storage.claims import claim_jobs
from worker.storage.due import take_due
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_jobs, expire_jobs, retry_jobs
from worker.storage.outcomes import Loss, Recorded
from worker.storage.tables import jobs
from worker.storage.transitions import IllegalMove, begin_jobs, move_jobs
from worker.storage.unwanted import remove_wants
from worker.storage.workers import release_orphans, rescue_jobs

LATER = NOW + 1000
MOVES = {(before.value, after.value) for (before, _), after in LEGAL_MOVES.items()}
OF_STATE: dict[JobState, dict[str, Any]] = {
    JobState.QUEUED: {"published_at_ms": NOW},
    JobState.RUNNING: {"worker_id": "w1", "claim_token": "t1", "claims": 1, "claimed_at_ms": NOW},
    JobState.WAITING: {"not_before_ms": NOW + 1},
    JobState.SUCCEEDED: {"ended_at_ms": NOW, "worker_id": "w1", "claim_token": "t1", "claims": 1},
    JobState.FAILED: {"ended_at_ms": NOW, "failure_kind": "server_error"},
    JobState.CANCELLED: {"ended_at_ms": NOW},
    JobState.EXPIRED: {"ended_at_ms": NOW},
}


def one_in_each(ledger: Ledger, **facts: Any) -> dict[JobState, str]:
    """A job in each state, by its state."""
    known = put(ledger, *[a_job(expires_at_ms=LATER, **facts) for _ in JobState])
    ids = dict(zip(JobState, [job.id for job in known], strict=True))
    with ledger.write() as connection:
        for one, id_ in ids.items():
            connection.execute(update(jobs).where(jobs.c.id == id_).values(state=one.value, **OF_STATE[one]))
    return ids


@pytest.mark.parametrize("move", Move)
def test_a_move_is_made_from_the_states_that_are_open_to_it_and_from_no_other(
    ledger: Ledger, move: Move
) -> None:
    ids = one_in_each(ledger)
    before = {one: job_row(ledger, id_) for one, id_ in ids.items()}
    made = ledger.run(lambda c: move_jobs(c, list(ids.values()), move, now_ms=LATER))
    assert set(made) == {id_ for one, id_ in ids.items() if is_legal(one, move)}
    for one, id_ in ids.items():
        row = job_row(ledger, id_)
        if not is_legal(one, move):
            assert tuple(row) == tuple(before[one])
            continue
        assert row.state == LEGAL_MOVES[one, move] == TARGETS[move]
        assert row.ended_at_ms == (LATER if TARGETS[move].is_final else None)
        left = (row.worker_id, row.claim_token, row.not_before_ms, row.published_at_ms)
        assert left == (None, None, None, None)


@pytest.mark.parametrize("move", Move)
def test_a_move_that_no_job_may_make_is_a_defect_and_writes_nothing(ledger: Ledger, move: Move) -> None:
    ids = one_in_each(ledger)
    for one, id_ in ids.items():
        ask = partial(move_jobs, ids=[id_], move=move, out_of=[one], now_ms=LATER)
        if is_legal(one, move):
            assert ledger.run(ask) == [id_]
        else:
            with pytest.raises(IllegalMove, match=f"{move.value} may not be made from {one.value}"):
                ledger.run(ask)
            assert state(ledger, id_) == one


def test_a_job_that_moved_on_meanwhile_stays_where_it_is(ledger: Ledger) -> None:
    ids = one_in_each(ledger)
    idle = (JobState.QUEUED, JobState.WAITING)
    made = ledger.run(lambda c: move_jobs(c, list(ids.values()), Move.CANCEL, out_of=idle, now_ms=LATER))
    assert set(made) == {ids[one] for one in idle}
    assert state(ledger, ids[JobState.RUNNING]) == "running"


@pytest.mark.parametrize("first", JobState)
def test_a_job_begins_queued_or_waiting_or_ends_where_it_arrives(ledger: Ledger, first: JobState) -> None:
    begin = partial(begin_jobs, now_ms=NOW, published_at_ms=NOW)
    [given] = [a_job(ended_as=first)]
    if first in FIRST_STATES:
        put(ledger, given, published_at_ms=NOW)
        row = job_row(ledger, given.id)
        assert row.state == first
        assert row.ended_at_ms == (NOW if first.is_final else None)
        assert row.failure_kind == ("invalid_request" if first is JobState.FAILED else None)
        assert row.published_at_ms == (NOW if first is JobState.QUEUED else None)
        return
    with pytest.raises(IllegalMove):
        ledger.run(lambda c: begin(c, {}, [first]))
    with pytest.raises(IllegalMove):
        put(ledger, given)
    assert rows(ledger, "jobs") == []


def _let_all_go(connection: Connection, ids: list[str]) -> None:
    remove_wants(connection, "b", [(0, id_) for id_ in ids], now_ms=LATER)


WAYS: dict[str, Callable[[Connection, list[str]], object]] = {
    "claim": lambda c, ids: claim_jobs(c, ids, worker_id="w2", token="t2", endpoint=ENDPOINT, now_ms=NOW),
    "relay": lambda c, ids: take_due(c, ENDPOINT, room=9, now_ms=NOW + 5),
    "cancel": lambda c, ids: cancel_jobs(c, ids, now_ms=LATER),
    "let go": _let_all_go,
    "expire": lambda c, ids: expire_jobs(c, now_ms=LATER),
    "retry": lambda c, ids: retry_jobs(c, ids, now_ms=LATER),
    "release": lambda c, ids: release_orphans(c, "w1", open_claims=(), now_ms=LATER),
    "rescue": lambda c, ids: rescue_jobs(c, "w1", max_solo_losses=3, now_ms=LATER),
    "rescue, given up": lambda c, ids: rescue_jobs(c, "w1", max_solo_losses=0, now_ms=LATER),
    "the doctor's success": lambda c, ids: doctor_repairs.succeed(c, ids, LATER),
}


@pytest.mark.parametrize("is_asked", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_into_the_ledger_makes_legal_moves_only(ledger: Ledger, way: str, is_asked: bool) -> None:
    ids = one_in_each(ledger, batch_id="b")
    ledger.run(lambda c: c.execute(update(jobs).values(is_cancel_requested=is_asked)))
    ledger.run(lambda c: WAYS[way](c, list(ids.values())))
    moved = {(one.value, state(ledger, id_)) for one, id_ in ids.items()}
    moved = {(before, after) for before, after in moved if before != after}
    assert moved, "it did nothing"
    assert moved <= MOVES


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_job_whose_claim_has_no_token_is_let_go_by_a_legal_move(ledger: Ledger, is_asked: bool) -> None:
    ids = one_in_each(ledger)
    half = {"claim_token": None, "is_cancel_requested": is_asked}
    ledger.run(lambda c: c.execute(update(jobs).values(half)))
    running = ids[JobState.RUNNING]
    ledger.run(lambda c: doctor_repairs.set_right_claims(c, [running], LATER))
    row = job_row(ledger, running)
    expected = ("cancelled", LATER, None) if is_asked else ("queued", None, None)
    assert (row.state, row.ended_at_ms, row.worker_id) == expected


def loss(ledger: Ledger, id_: str, **facts: Any) -> Loss:
    claimed = claim_one(ledger, id_)
    counts = {"losses": 1, "solo_losses": 0, "is_given_up": False} | facts
    return Loss(claimed.claim, claimed.claimed_at_ms, NOW + 10, **counts)


def test_a_lost_worker_is_an_outcome_that_counts_from_the_holder_of_the_claim_only(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    lost = loss(ledger, id_)
    assert record(ledger, lost, Loss(a_claim("nobody").claim, NOW, NOW, 1, 0, False)) == [
        Recorded.APPLIED,
        Recorded.CLAIM_LOST,
    ]
    row = job_row(ledger, id_)
    assert (row.state, row.losses, row.solo_losses, row.claim_token) == ("queued", 1, 0, None)
    claim(ledger, id_, token="t2")
    assert record(ledger, lost) == [Recorded.CLAIM_LOST]
    assert (state(ledger, id_), [one.outcome for one in rows(ledger, "attempts")]) == ("running", ["lost"])


def test_a_job_that_is_given_up_with_its_worker_keeps_no_words_of_an_earlier_failure(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    refused = setback(
        claim_one(ledger, id_), kind=FailureKind.SERVER_ERROR, not_before_ms=NOW, request_id="r"
    )
    record(ledger, refused)
    ledger.run(lambda c: take_due(c, ENDPOINT, room=1, now_ms=NOW))
    record(ledger, loss(ledger, id_, losses=4, solo_losses=2, is_given_up=True))
    row = job_row(ledger, id_)
    assert (row.state, row.failure_kind, row.http_status, row.request_id) == (
        "failed",
        "worker_lost",
        None,
        None,
    )
    assert row.failure_message == "its worker died 4 times with it, 2 of them while it ran alone"
    assert (row.attempts, row.losses, row.solo_losses) == (1, 4, 2)
