"""A run of a file of requests, and `antrean submit` of the same file: one batch, and whoever submitted it has it done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.desk import Desk
from worker.operations import run_holding, run_locks
from worker.operations.model_choice import ModelChoice
from worker.operations.preflight import NOT_ASKED
from worker.operations.request_file import make_requests_batch, open_requests, submit_requests
from worker.operations.run_input import open_input
from worker.operations.run_work import Work
from worker.storage.batches import Batch
from worker.storage.engine import Ledger

LINES = [
    '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", '
    '"content": "1"}], "model": "m"}}',
    "",
    '{"messages": [{"role": "user", "content": "2"}]}',
]


@pytest.fixture
def desk(ledger: Ledger, tmp_path: Path) -> Desk:
    desk = Desk(ledger, tmp_path)
    (tmp_path / "r.jsonl").write_text("\n".join(LINES) + "\n")
    return desk


@contextmanager
def run(desk: Desk) -> Iterator[Work]:
    """A run of the file, which lives inside."""
    given = open_input(
        desk.documents.parent / "r.jsonl",
        None,
        output=Path("out.jsonl"),
        settings=desk.settings,
        skips_unreadable=False,
    )
    with given as found:
        checked = found.check(desk.settings, ModelChoice("m", NOT_ASKED, pytest.fail))
        batch = checked.make_batch(desk.ledger, desk.settings)
        with run_holding.worked_on(desk.ledger, desk.settings, batch) as lock:
            yield checked.write_down(desk.ledger, desk.settings, batch, lock)


def submit(desk: Desk) -> Batch:
    with open_requests(desk.documents.parent / "r.jsonl") as source:
        requests = source.check(desk.settings, ModelChoice("m", NOT_ASKED, pytest.fail))
        batch = make_requests_batch(desk.ledger, desk.settings, requests)
        run_holding.keep_from_runs(desk.ledger, batch)
        submit_requests(desk.ledger, desk.settings, batch, requests)
    return batch


def test_the_lines_are_jobs_under_their_own_names_in_their_order(desk: Desk) -> None:
    with run(desk) as work:
        assert (len(work.ids), work.new, work.done) == (2, 2, 0)
        desk.answer(*work.ids)
    assert desk.names(work) == desk.results(work) == ["a", None]
    with run(desk) as again:
        assert (again.batch_id, again.ids, again.new, again.done) == (work.batch_id, work.ids, 0, 2)


def test_a_run_that_is_walked_away_from_is_held_until_somebody_submits_it(desk: Desk) -> None:
    with suppress(KeyboardInterrupt), run(desk) as work:
        raise KeyboardInterrupt
    assert desk.is_held(work)
    assert desk.relayed() == set()
    assert submit(desk).id == work.batch_id
    assert desk.relayed() == set(work.ids)
    with suppress(KeyboardInterrupt), run(desk) as again:
        raise KeyboardInterrupt
    assert not desk.is_held(again), "whoever submitted it wants it done"
    assert run_holding.hold_abandoned(desk.ledger, desk.settings) == []
    assert not desk.is_held(again)


def test_a_batch_that_is_submitted_while_a_run_of_it_lives_goes_on_after_the_run(desk: Desk) -> None:
    with suppress(KeyboardInterrupt), run(desk) as work:
        submit(desk)
        raise KeyboardInterrupt
    assert not desk.is_held(work)
    assert desk.relayed() == set(work.ids)


def test_a_killed_run_of_requests_is_held_by_the_next_command(desk: Desk) -> None:
    with open_requests(desk.documents.parent / "r.jsonl") as source:
        requests = source.check(desk.settings, ModelChoice("m", NOT_ASKED, pytest.fail))
        details = {"home": run_locks.home_name(desk.settings)}
        batch = make_requests_batch(desk.ledger, desk.settings, requests, kind="run", details=details)
        submit_requests(desk.ledger, desk.settings, batch, requests)
    (desk.settings.home / "runs").mkdir()
    assert [(held.id, count) for held, count in run_holding.hold_abandoned(desk.ledger, desk.settings)] == [
        (batch.id, 2)
    ]
    assert desk.relayed() == set()
