"""Runs that share documents, on both databases: each ends with its own lines, and every document is called once."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.support.desk import Desk
from tests.support.ledger import (
    NOW,
    claim,
    claim_one,
    job_row,
    record,
    rows,
    setback,
    state,
    success,
)
from worker.operations import run_holding, run_locks, run_work
from worker.operations.tracking import Progress, Tracker
from worker.sources.documents import find_documents
from worker.storage.batch_status import fetch_status
from worker.storage.batches import (
    fetch_batch,
    hold_batch,
)
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_batch, retry_batch


@pytest.fixture
def desk(ledger: Ledger, tmp_path: Path) -> Desk:
    return Desk(ledger, tmp_path)


def test_a_run_goes_on_when_another_that_wants_its_jobs_is_stopped(desk: Desk) -> None:
    """T1."""
    with desk.run() as one:
        with suppress(KeyboardInterrupt), desk.run("sub") as other:
            assert set(other.ids) == set(one.ids)
            raise KeyboardInterrupt
        assert desk.relayed() == set(one.ids)


def test_what_a_stopped_run_had_in_the_broker_goes_on_with_a_run_that_wants_it(desk: Desk) -> None:
    with desk.run("sub") as other:
        with suppress(KeyboardInterrupt), desk.run() as one:
            assert desk.relayed() == set(one.ids)
            raise KeyboardInterrupt
        assert desk.is_held(one)
        desk.answer(*other.ids)
        assert desk.names(other) == ["0.txt", "1.txt", "2.txt"]


def test_a_job_in_flight_of_a_stopped_run_is_worked_on_for_the_next_one(desk: Desk) -> None:
    """T2: its call failed after the stop, and it waited for the stopped run."""
    with suppress(KeyboardInterrupt), desk.run() as one:
        job = claim_one(desk.ledger, one.ids[0], endpoint=desk.settings.endpoint)
        raise KeyboardInterrupt
    with desk.run("sub") as other:
        record(desk.ledger, setback(job, not_before_ms=NOW + 1000))
        assert desk.relayed() == set(other.ids), job_row(desk.ledger, job.id).state


def test_a_job_in_flight_goes_on_with_the_run_that_lives_when_its_own_is_stopped(desk: Desk) -> None:
    with desk.run("sub") as other:
        with suppress(KeyboardInterrupt), desk.run() as one:
            job = claim_one(desk.ledger, one.ids[0], endpoint=desk.settings.endpoint)
            raise KeyboardInterrupt
        record(desk.ledger, setback(job, not_before_ms=NOW + 1000))
        assert desk.relayed() == set(other.ids)


def test_a_run_that_begins_is_not_held_by_another_that_begins(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T3: the look and the hold were two steps, and the run began between them."""
    (desk.settings.home / "runs").mkdir()
    batch = run_work.make_run(desk.ledger, desk.settings, desk.documents, desk.prompt, "m")
    documents = find_documents(desk.documents)
    descriptor = run_locks.open_lock(desk.settings, batch.id)
    lock = run_locks.RunLock(descriptor)
    run_work.submit_run(desk.ledger, desk.settings, batch, documents, desk.prompt, "m", lock)
    os.close(descriptor)  # and killed
    looked, go = threading.Event(), threading.Event()
    real = run_locks.is_lock_held

    def look_slowly(path: Path) -> bool:
        answer = real(path)
        looked.set()
        go.wait(5)
        return answer

    monkeypatch.setattr(run_holding, "is_lock_held", look_slowly)
    other = threading.Thread(target=lambda: run_holding.hold_abandoned(desk.ledger, desk.settings))
    other.start()
    assert looked.wait(5)
    with desk.run() as one:
        go.set()
        other.join(10)
        assert not desk.is_held(one)
        assert desk.relayed() == set(one.ids)


def test_a_run_waits_while_its_batch_is_being_held_and_then_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = run_work.make_run(desk.ledger, desk.settings, desk.documents, desk.prompt, "m")
    has_lock, begun = threading.Event(), threading.Event()
    was_early: list[bool] = []
    real = run_holding._hold

    def hold_slowly(ledger: Ledger, batch_id: str) -> None:
        if threading.current_thread() is other:
            has_lock.set()
            was_early.append(begun.wait(0.2))
        real(ledger, batch_id)

    monkeypatch.setattr(run_holding, "_hold", hold_slowly)
    other = threading.Thread(target=lambda: run_holding.hold_abandoned(desk.ledger, desk.settings))
    other.start()
    assert has_lock.wait(5)
    with desk.run() as one:
        begun.set()
        other.join(10)
        assert one.batch_id == batch.id
        assert was_early == [False], "the run began although its lock was taken"
        assert not desk.is_held(one)


def test_each_run_has_its_own_names_for_the_same_documents(desk: Desk) -> None:
    """T25: whichever of them made the jobs."""
    with desk.run() as whole:
        desk.answer(*whole.ids)
    with desk.run("sub") as part:
        assert part.done == 3
    with desk.run() as again:
        assert again.batch_id == whole.batch_id
    for work in (whole, again):
        assert desk.names(work) == desk.results(work) == ["sub/0.txt", "sub/1.txt", "sub/2.txt"]
        assert desk.states(work) == {"succeeded": 3}
    assert desk.names(part) == desk.results(part) == ["0.txt", "1.txt", "2.txt"]
    assert desk.states(part) == {"succeeded": 3}
    assert len(rows(desk.ledger, "usage")) == 3


def test_a_batch_that_run_printed_has_its_status_and_its_tokens(desk: Desk) -> None:
    with desk.run() as whole:
        desk.answer(*whole.ids)
    with desk.run("sub") as part:
        pass
    with desk.ledger.read() as connection:
        for work in (whole, part):
            batch = fetch_batch(connection, work.batch_id)
            assert batch is not None
            found = fetch_status(connection, batch)
            assert (found.status, found.total_tokens, found.batch.total) == ("completed", 21, 3)


def test_a_link_beside_its_document_is_a_line_of_its_own_and_no_call(desk: Desk) -> None:
    """T27."""
    (desk.documents / "sub" / "copy.txt").symlink_to(desk.documents / "sub" / "0.txt")
    with desk.run() as work:
        progress = Progress(total=len(work.ids), succeeded=work.done)
        tracker = Tracker(desk.ledger, work.open, progress)
        desk.answer(*work.ids)
        tracker.refresh()
        assert tracker.is_done
        assert (progress.succeeded, progress.failed) == (4, 0)
        assert progress.prompt_tokens == 9, "three calls"
    names = ["sub/0.txt", "sub/1.txt", "sub/2.txt", "sub/copy.txt"]
    assert desk.names(work) == desk.results(work) == names
    assert desk.states(work) == {"succeeded": 4}
    with desk.run() as again:
        assert (again.done, desk.names(again)) == (4, names)
    assert desk.states(again) == {"succeeded": 4}


def test_a_run_that_is_typed_again_beside_itself_goes_on_when_one_of_the_two_is_stopped(desk: Desk) -> None:
    with desk.run() as one:
        with suppress(KeyboardInterrupt), desk.run() as other:
            assert other.batch_id == one.batch_id
            raise KeyboardInterrupt
        assert not desk.is_held(one)
        assert desk.relayed() == set(one.ids)
    assert desk.is_held(one)
    assert desk.relayed() == set()


def test_jobs_that_failed_in_an_earlier_run_are_tried_again_for_the_next_one(desk: Desk) -> None:
    with desk.run() as whole:
        got = claim(desk.ledger, *whole.ids, endpoint=desk.settings.endpoint)
        record(desk.ledger, *(setback(job) for job in got.values()))
    with desk.run("sub") as part:
        assert desk.relayed() == set(part.ids)
        desk.answer(*part.ids)
    assert desk.results(whole) == ["sub/0.txt", "sub/1.txt", "sub/2.txt"]
    assert desk.states(whole) == {"succeeded": 3}


def test_nobody_pays_for_what_failed_once_and_was_walked_away_from(desk: Desk) -> None:
    """The run that failed is over: that it wanted the jobs keeps nothing going."""
    with desk.run() as whole:
        got = claim(desk.ledger, *whole.ids, endpoint=desk.settings.endpoint)
        record(desk.ledger, *(setback(job) for job in got.values()))
    with suppress(KeyboardInterrupt), desk.run("sub"):
        raise KeyboardInterrupt
    assert desk.relayed() == set()
    assert claim(desk.ledger, *whole.ids, token="t9", endpoint=desk.settings.endpoint) == {}


def test_results_are_in_the_order_of_a_folder_that_has_grown(desk: Desk) -> None:
    with desk.run() as work:
        desk.answer(*work.ids)
    desk.write("sub/00.txt", "new")
    with desk.run() as again:
        assert (again.batch_id, again.done, again.new) == (work.batch_id, 3, 1)
        desk.answer(*again.ids)
    names = ["sub/0.txt", "sub/00.txt", "sub/1.txt", "sub/2.txt"]
    assert desk.results(again) == names
    assert desk.states(again) == {"succeeded": 4}


def test_an_old_version_of_a_document_is_neither_called_nor_a_line(desk: Desk) -> None:
    with suppress(KeyboardInterrupt), desk.run() as first:
        raise KeyboardInterrupt
    desk.write("sub/1.txt", "changed")
    with desk.run() as work:
        assert desk.relayed() == set(work.ids)
        desk.answer(*first.ids, *work.ids)
    assert desk.results(work) == ["sub/0.txt", "sub/1.txt", "sub/2.txt"]
    assert desk.states(work) == {"succeeded": 3}
    assert state(desk.ledger, first.ids[1]) == "cancelled"
    desk.write("sub/1.txt", "text 1")
    with desk.run() as back:
        assert set(back.ids) == set(first.ids)
        assert desk.relayed() == {first.ids[1]}
        desk.answer(*back.ids)
    assert desk.results(back) == ["sub/0.txt", "sub/1.txt", "sub/2.txt"]


def test_an_old_version_that_another_run_of_the_same_folder_works_on_is_left_to_it(desk: Desk) -> None:
    with desk.run() as first:
        desk.write("sub/1.txt", "changed")
        with desk.run() as second:
            assert second.batch_id == first.batch_id
            assert desk.relayed() == {*first.ids, *second.ids}
            desk.answer(*first.ids, *second.ids)
        assert not desk.is_held(first)
    names = ["sub/0.txt", "sub/1.txt", "sub/2.txt"]
    assert desk.names(first) == desk.names(second) == names
    with desk.run() as again:
        pass
    assert desk.results(again) == names, "the next run lets go of it"


def test_a_document_that_left_one_folder_is_still_another_runs(desk: Desk) -> None:
    with desk.run("sub") as part:
        with desk.run() as whole:
            pass
        (desk.documents / "sub" / "1.txt").rename(desk.documents / "gone")
        with desk.run() as less:
            assert len(less.ids) == 2
        assert desk.relayed() == set(part.ids) == set(whole.ids)
        desk.answer(*part.ids)
    assert desk.results(part) == ["0.txt", "1.txt", "2.txt"]
    assert desk.results(less) == ["sub/0.txt", "sub/2.txt"]


def test_cancelling_a_run_leaves_what_a_living_one_wants(desk: Desk) -> None:
    desk.write("alone.txt", "only in the whole")
    with desk.run() as whole, desk.run("sub") as part:
        running = claim_one(desk.ledger, part.ids[0], endpoint=desk.settings.endpoint)
        steps = []
        while any(
            (
                (done := desk.ledger.run(partial(cancel_batch, batch_id=whole.batch_id, now_ms=NOW))).ended,
                done.asked,
                done.kept,
            )
        ):
            steps.append(done)
        assert [sum(getattr(one, name) for one in steps) for name in ("ended", "asked", "kept")] == [1, 0, 3]
        record(desk.ledger, success(running))
        assert desk.relayed() == set(part.ids[1:])
        desk.answer(*part.ids)
    assert desk.states(part) == {"succeeded": 3}
    assert desk.states(whole) == {"succeeded": 3, "cancelled": 1}


def test_a_run_that_was_cancelled_keeps_nothing_going(desk: Desk) -> None:
    with desk.run() as whole:
        with suppress(KeyboardInterrupt), desk.run("sub") as part:
            desk.ledger.run(partial(cancel_batch, batch_id=whole.batch_id, now_ms=NOW))
            raise KeyboardInterrupt
        assert desk.relayed() == set()
        assert desk.states(part) == {"queued": 3}
        desk.ledger.run(partial(cancel_batch, batch_id=part.batch_id, now_ms=NOW))
        assert desk.states(part) == {"cancelled": 3}


def test_a_run_begins_to_want_a_job_that_was_asked_to_stop(desk: Desk) -> None:
    for again in ("", "sub"):
        with desk.run() as whole:
            id_ = whole.ids[0]
            job = claim_one(desk.ledger, id_, endpoint=desk.settings.endpoint, token=f"t{again}")
            desk.ledger.run(partial(cancel_batch, batch_id=whole.batch_id, now_ms=NOW))
            assert job_row(desk.ledger, id_).is_cancel_requested
        with desk.run(again) as work:
            record(desk.ledger, setback(job, not_before_ms=NOW + 1000))
            assert desk.relayed() == set(work.ids)


def test_retry_of_a_batch_tries_the_jobs_that_another_one_made(desk: Desk) -> None:
    with desk.run() as whole, desk.run("sub") as part:
        got = claim(desk.ledger, *whole.ids, endpoint=desk.settings.endpoint)
        record(desk.ledger, *(setback(job) for job in got.values()))
        retried = desk.ledger.run(
            partial(retry_batch, batch_id=part.batch_id, states=[run_work.JobState.FAILED], now_ms=NOW)
        )
        assert set(retried) == set(part.ids)
        assert desk.relayed() == set(part.ids)


def test_a_living_run_makes_good_what_two_transactions_missed(desk: Desk) -> None:
    """On PostgreSQL neither sees what the other has not committed; here the hand-over is just not done."""
    with desk.run() as whole, desk.run("sub") as part:
        with desk.ledger.write() as connection:
            connection.exec_driver_sql(f"UPDATE batches SET held_at_ms = 1 WHERE id = '{whole.batch_id}'")
        assert desk.relayed() == set()
        run_holding.tend(desk.ledger, part.batch_id)
        assert desk.relayed() == set(part.ids)
        desk.ledger.run(partial(hold_batch, batch_id=part.batch_id, now_ms=NOW))
        run_holding.tend(desk.ledger, part.batch_id)
        assert not desk.is_held(part)
        assert desk.relayed() == set(part.ids)


def test_the_same_path_in_another_home_is_another_run(desk: Desk, tmp_path: Path) -> None:
    """Two containers with other documents at the same place share a ledger: neither lets go of the other's."""
    with desk.run() as one:
        other_home = tmp_path / "elsewhere" / ".antrean"
        other_home.mkdir(parents=True)
        here, desk.settings = desk.settings, desk.settings.model_copy(update={"home": other_home})
        (desk.documents / "sub" / "0.txt").unlink()
        desk.write("sub/new.txt", "only there")
        with desk.run() as two:
            assert two.batch_id != one.batch_id
            assert desk.states(two) == {"queued": 3}
        desk.settings = here
        assert desk.states(one) == {"queued": 3}
    assert {job_row(desk.ledger, id_).state for id_ in one.ids} == {"queued"}
