"""Pruning beside runs, on both databases: what a living run wants is spared, and what nobody runs is not."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import pytest

from tests.support.desk import Desk
from tests.support.ledger import (
    NOW,
    a_job,
    put,
    rows,
)
from worker.clock import SystemClock
from worker.errors import InputError
from worker.ids import new_batch_id
from worker.operations import run_holding, run_locks, run_work
from worker.operations.tracking import Progress, Tracker
from worker.storage.batches import (
    Batch,
    fetch_batch,
    finish_submission,
    make_batch,
)
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_batch
from worker.storage.pruning import OfAge, OfBatch, Pruned, prune


@pytest.fixture
def desk(ledger: Ledger, tmp_path: Path) -> Desk:
    return Desk(ledger, tmp_path)


def test_pruning_spares_what_a_living_run_wants_and_nothing_of_one_that_has_ended(desk: Desk) -> None:
    with desk.run() as whole:
        desk.answer(*whole.ids)
        with desk.run("sub"):
            pass
        later_ms = SystemClock().now_ms() + 60_000
        assert prune(desk.ledger, OfAge(later_ms), with_usage=False).removed == 0
        assert desk.results(whole) == ["sub/0.txt", "sub/1.txt", "sub/2.txt"]
    assert prune(desk.ledger, OfAge(later_ms), with_usage=False).removed == 3
    assert rows(desk.ledger, "wants") == []


def test_a_batch_that_a_living_run_shares_is_pruned_down_to_what_the_run_wants(desk: Desk) -> None:
    with desk.run() as whole:
        desk.answer(*whole.ids)
    desk.write("other.txt", "more")
    with desk.run("sub") as part:
        assert prune(desk.ledger, OfBatch(whole.batch_id), with_usage=False) == Pruned(0, spared=3)
        assert desk.names(part) == desk.results(part) == ["0.txt", "1.txt", "2.txt"]
        assert desk.results(whole) == []
    assert [row.id for row in rows(desk.ledger, "batches")] == [part.batch_id]


def test_only_runs_that_nobody_runs_are_kept_from_running(desk: Desk) -> None:
    with desk.run() as held:
        pass
    with desk.run("sub") as living:
        killed = run_work.make_run(desk.ledger, desk.settings, desk.documents / "sub/0.txt", desk.prompt, "m")
        batches = [_fetch(desk.ledger, id_) for id_ in (held.batch_id, living.batch_id)]
        with run_locks.kept_from_running(desk.ledger, desk.settings) as runs:
            assert (runs.idle, runs.living) == ({killed.id}, {living.batch_id})
        for batch, also in zip(batches, ({held.batch_id}, set()), strict=True):
            with run_locks.kept_from_running(desk.ledger, desk.settings, batch) as runs:
                assert (runs.idle, runs.living) == ({killed.id, *also}, {living.batch_id})


def test_a_submitted_batch_that_somebody_runs_is_spared_whatever_is_said(desk: Desk) -> None:
    """`run requests.jsonl` goes on with the batch that `submit` made."""
    batch = _submitted(desk, 1)
    for is_run in (True, False):
        with run_holding.worked_on(desk.ledger, desk.settings, batch) if is_run else nullcontext():
            with run_locks.kept_from_running(desk.ledger, desk.settings) as runs:
                assert (batch.id in runs.living) is is_run
                what = OfAge(
                    NOW + 10_000, even_unfinished=True, ended_runs=runs.idle, find_living=runs.find_living
                )
                done = prune(desk.ledger, what, with_usage=False)
            assert (done.removed, done.spared) == ((0, 1) if is_run else (1, 0))


def test_a_submitted_batch_that_a_run_begins_while_prune_goes_on_is_spared_from_then(desk: Desk) -> None:
    """Between two steps of the prune, whose first look saw nobody."""
    batch, begun = _submitted(desk, 60), []
    with ExitStack() as runs_of_test, run_locks.kept_from_running(desk.ledger, desk.settings) as runs:

        def begin(_removed: int) -> None:
            if not begun:
                runs_of_test.enter_context(run_holding.worked_on(desk.ledger, desk.settings, batch))
                begun.extend(row.id for row in rows(desk.ledger, "jobs"))

        what = OfAge(SystemClock().now_ms(), ended_runs=runs.idle, find_living=runs.find_living)
        done = prune(desk.ledger, what, with_usage=False, on_step=begin)
        assert done == Pruned(removed=60 - len(begun), spared=len(begun))
        assert 0 < len(begun) < 60
        assert [row.id for row in rows(desk.ledger, "jobs")] == begun, "the run has what it found"
        assert [row.id for row in rows(desk.ledger, "batches")] == [batch.id]


def test_a_run_that_begins_while_prune_decides_what_goes_finds_what_is_left(desk: Desk) -> None:
    """Within a step: the prune has looked and not removed yet. What the run then finds is not taken from it."""
    batch, found = _submitted(desk, 60), []
    begun, go = threading.Event(), threading.Event()
    was_early: list[bool] = []

    def run() -> None:
        with run_holding.worked_on(desk.ledger, desk.settings, batch):
            found.extend(row.id for row in rows(desk.ledger, "jobs"))
            begun.set()
            assert go.wait(30)

    other = threading.Thread(target=run)
    with run_locks.kept_from_running(desk.ledger, desk.settings) as runs:

        def find_living(batch_ids: Collection[str]) -> frozenset[str]:
            living = runs.find_living(batch_ids)
            if not was_early:
                other.start()
                was_early.append(begun.wait(0.3))
            return living

        what = OfAge(SystemClock().now_ms(), ended_runs=runs.idle, find_living=find_living)
        done = prune(desk.ledger, what, with_usage=False, on_step=lambda _: begun.wait(30) and None)
    left = [row.id for row in rows(desk.ledger, "jobs")]
    go.set()
    other.join(30)
    assert was_early == [False], "the run began while its jobs were being removed"
    assert (found, done) == (left, Pruned(removed=60 - len(left), spared=len(left)))
    assert 0 < len(left) < 60


def test_an_empty_batch_that_a_run_begins_is_not_removed(desk: Desk) -> None:
    batch = _submitted(desk, 1)
    with desk.ledger.write() as connection:
        connection.exec_driver_sql("DELETE FROM jobs")
    with (
        run_locks.kept_from_running(desk.ledger, desk.settings) as runs,
        run_holding.worked_on(desk.ledger, desk.settings, batch),
    ):
        what = OfAge(SystemClock().now_ms(), ended_runs=runs.idle, find_living=runs.find_living)
        prune(desk.ledger, what, with_usage=False)
        assert [row.id for row in rows(desk.ledger, "batches")] == [batch.id]
    prune(desk.ledger, OfAge(SystemClock().now_ms()), with_usage=False)
    assert rows(desk.ledger, "batches") == []


def test_a_run_is_of_the_home_that_runs_it_last(desk: Desk, tmp_path: Path) -> None:
    """Whoever prunes asks the locks of that home."""
    batch = run_work.make_run(desk.ledger, desk.settings, desk.documents, desk.prompt, "m")
    elsewhere = desk.settings.model_copy(update={"home": tmp_path / "another"})
    with run_holding.worked_on(desk.ledger, elsewhere, batch):
        assert not run_locks.is_of_home(_fetch(desk.ledger, batch.id), desk.settings)
        with run_locks.kept_from_running(desk.ledger, desk.settings) as runs:
            assert batch.id not in runs.idle


def test_a_run_whose_batch_was_pruned_while_it_waited_writes_nothing_down(desk: Desk) -> None:
    batch = run_work.make_run(desk.ledger, desk.settings, desk.documents, desk.prompt, "m")
    prune(desk.ledger, OfBatch(batch.id), with_usage=False)
    with (
        pytest.raises(InputError, match="was pruned just now: type the command again"),
        run_holding.worked_on(desk.ledger, desk.settings, batch),
    ):
        pytest.fail("it went on")
    with pytest.raises(InputError, match="was pruned while it was written down"):
        desk.ledger.run(partial(finish_submission, batch_id=batch.id, now_ms=NOW))


def _submitted(desk: Desk, count: int) -> Batch:
    """A batch as `submit` makes it, whose jobs have ended."""
    endpoint, batch_id = desk.settings.endpoint, new_batch_id()
    make = partial(
        make_batch, kind="submit", label="r.jsonl", endpoint=endpoint, idempotency_key=None, now_ms=NOW
    )
    desk.ledger.run(lambda connection: make(connection, batch_id))
    put(desk.ledger, *(a_job(batch_id=batch_id, is_bulk=True, endpoint=endpoint) for _ in range(count)))
    desk.ledger.run(partial(finish_submission, batch_id=batch_id, now_ms=NOW))
    desk.ledger.run(partial(cancel_batch, batch_id=batch_id, now_ms=NOW))
    return _fetch(desk.ledger, batch_id)


def _fetch(ledger: Ledger, batch_id: str) -> Batch:
    with ledger.read() as connection:
        batch = fetch_batch(connection, batch_id)
    assert batch is not None
    return batch


def test_a_run_does_not_wait_for_jobs_that_somebody_has_removed(desk: Desk) -> None:
    with desk.run() as work:
        progress = Progress(total=3)
        tracker = Tracker(desk.ledger, work.open, progress)
        with desk.ledger.write() as connection:
            connection.exec_driver_sql(f"DELETE FROM jobs WHERE id = '{work.ids[0]}'")
        desk.answer(*work.ids)
        tracker.refresh()
        assert tracker.is_done
        assert (progress.succeeded, progress.failures) == (2, {"removed": 1})
