"""Jobs of a run that somebody has tried again, on both databases: they are for the workers."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from schemas.failure import FailureKind
from schemas.job import JobState
from tests.support.desk import Desk
from tests.support.ledger import (
    NOW,
    claim,
    record,
    setback,
    state,
)
from worker.operations import run_holding, run_work
from worker.operations.retry import leave_to_workers
from worker.storage.batches import (
    Batch,
    begin_run,
    fetch_batch,
)
from worker.storage.engine import Ledger
from worker.storage.moves import retry_batch


@pytest.fixture
def desk(ledger: Ledger, tmp_path: Path) -> Desk:
    return Desk(ledger, tmp_path)


def test_jobs_that_somebody_had_tried_again_are_not_held_by_the_next_run(desk: Desk) -> None:
    """`retry` of a run that has ended is for the workers: nobody has its lock, and it was not killed."""
    with desk.run() as whole:
        fail(desk, whole)
    batch = try_again(desk, whole)
    assert desk.relayed() == set(whole.ids)
    assert run_holding.hold_abandoned(desk.ledger, desk.settings) == []
    assert not desk.is_held(whole)
    claim(desk.ledger, *whole.ids, endpoint=desk.settings.endpoint, token="again")
    assert {state(desk.ledger, id_) for id_ in whole.ids} == {"running"}

    with suppress(KeyboardInterrupt), run_holding.worked_on(desk.ledger, desk.settings, batch):
        raise KeyboardInterrupt
    assert desk.is_held(whole), "a run that is stopped keeps its jobs to itself, as ever"


def test_jobs_that_are_tried_again_while_their_run_ends_go_on(desk: Desk) -> None:
    with desk.run() as whole:
        fail(desk, whole)
        try_again(desk, whole)
    assert not desk.is_held(whole)
    assert desk.relayed() == set(whole.ids)


def test_a_run_that_was_killed_after_jobs_were_tried_again_is_held(desk: Desk) -> None:
    with desk.run() as whole:
        fail(desk, whole)
    batch = try_again(desk, whole)
    assert desk.ledger.run(partial(begin_run, batch_id=batch.id))  # and killed
    assert [one.id for one, _ in run_holding.hold_abandoned(desk.ledger, desk.settings)] == [batch.id]
    assert desk.is_held(whole)


def fail(desk: Desk, work: run_work.Work) -> None:
    """The endpoint refuses all jobs of a run."""
    got = claim(desk.ledger, *work.ids, endpoint=desk.settings.endpoint, token="fails")
    record(desk.ledger, *(setback(job, kind=FailureKind.REJECTED) for job in got.values()))


def try_again(desk: Desk, work: run_work.Work) -> Batch:
    """What `antrean retry --failed` does."""
    retried = partial(retry_batch, batch_id=work.batch_id, states=[JobState.FAILED], kinds=[], now_ms=NOW)
    assert len(desk.ledger.run(retried)) == len(work.ids)
    batch = _fetch(desk.ledger, work.batch_id)
    leave_to_workers(desk.ledger, batch)
    return batch


def _fetch(ledger: Ledger, batch_id: str) -> Batch:
    with ledger.read() as connection:
        batch = fetch_batch(connection, batch_id)
    assert batch is not None
    return batch
