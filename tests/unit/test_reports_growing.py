"""The file of results that grows: in order, never mistaken for the whole, and whole when it is finished."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from sqlalchemy import text

from schemas.failure import FailureKind
from tests.support.ledger import a_job, claim, put, record, setback, success
from worker.reports.growing import GrowingResults
from worker.storage.engine import Ledger
from worker.storage.moves import retry_jobs
from worker.storage.reading import fetch_states
from worker.storage.wants import Wanted


class Run:
    """Some jobs, their results so far, and the file."""

    def __init__(self, ledger: Ledger, folder: Path, count: int = 4) -> None:
        self.ledger = ledger
        self.path = folder / "results.jsonl"
        known = put(ledger, *(a_job(custom_id="its own") for _ in range(count)))
        self.ids = [Wanted(job.id, f"line {i}") for i, job in enumerate(known)]
        self.growing = GrowingResults(ledger, self.ids, self.path)

    def grow_to(self, path: Path) -> None:
        self.path = path
        self.growing = GrowingResults(self.ledger, self.ids, path)

    def answer(self, *numbers: int, fails: bool = False) -> None:
        ids = [self.ids[i] for i in numbers]
        got = claim(self.ledger, *ids, token=f"t{numbers}{fails}")
        assert len(got) == len(ids)
        for job in got.values():
            record(self.ledger, setback(job, kind=FailureKind.REJECTED) if fails else success(job))

    def advance(self) -> None:
        with self.ledger.read() as connection:
            states = fetch_states(connection, self.ids)
        self.growing.advance(lambda id_: id_ in states and not states[id_].is_final)

    @property
    def lines(self) -> list[str]:
        """What the growing file holds."""
        return names(self.path.with_name("results.jsonl.part"))


def names(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def files(run: Run) -> list[str]:
    return sorted(path.name for path in run.path.parent.iterdir())


@pytest.fixture
def run(sqlite_ledger: Ledger, tmp_path: Path) -> Run:
    return Run(sqlite_ledger, tmp_path)


def test_lines_come_in_order_up_to_the_first_job_that_has_not_ended(run: Run) -> None:
    run.answer(0, 2)
    run.advance()
    assert run.lines == ["line 0"]
    assert not run.path.exists(), "the name is for the whole"
    run.answer(1)
    run.advance()
    assert run.lines == ["line 0", "line 1", "line 2"]
    run.answer(3)
    counts = run.growing.finish()
    assert (counts.succeeded, counts.total) == (4, 4)
    assert names(run.path) == [f"line {i}" for i in range(4)]
    assert files(run) == ["only", "results.jsonl"]


def test_a_run_that_is_stopped_leaves_what_it_has_and_the_old_file(run: Run) -> None:
    run.path.write_text("old\n")
    run.answer(0)
    run.advance()
    run.growing.close()
    assert run.growing.part == run.path.with_name("results.jsonl.part")
    assert (run.lines, run.path.read_text()) == (["line 0"], "old\n")
    again = GrowingResults(run.ledger, run.ids, run.path)
    again.finish()
    assert names(run.path) == ["line 0"]


def test_a_run_that_is_stopped_before_its_first_line_leaves_nothing(run: Run) -> None:
    run.advance()
    run.growing.close()
    assert files(run) == ["only"]


def test_two_runs_that_write_the_same_file_each_write_all_of_it(run: Run) -> None:
    other = GrowingResults(run.ledger, run.ids, run.path)
    run.answer(0, 1, 2, 3)
    run.advance()
    other.advance(lambda _: False)
    assert run.lines == [f"line {i}" for i in range(4)]
    assert run.growing.finish() == other.finish()
    assert names(run.path) == [f"line {i}" for i in range(4)]
    assert files(run) == ["only", "results.jsonl"]


def test_a_job_that_failed_and_was_tried_again_by_another_run_has_its_last_line(run: Run) -> None:
    run.answer(0)
    run.answer(1, fails=True)
    run.answer(2)
    run.advance()
    run.ledger.run(lambda c: retry_jobs(c, [run.ids[1]], now_ms=1))
    run.answer(1)
    run.answer(3, fails=True)
    counts = run.growing.finish()
    assert (counts.succeeded, counts.failed, counts.total) == (3, 1, 4)
    assert names(run.path) == [f"line {i}" for i in range(4)]
    codes = [json.loads(line)["response"]["status_code"] for line in run.path.read_text().splitlines()]
    assert codes == [200, 200, 200, 500]


def test_a_line_that_was_written_outlives_its_job(run: Run) -> None:
    """A prune of an older antrean spares nothing."""
    run.answer(0, 1)
    run.answer(2, fails=True)
    run.advance()
    with run.ledger.write() as connection:
        connection.execute(text("DELETE FROM jobs"))
    counts = run.growing.finish()
    assert counts.total == 3
    assert names(run.path) == ["line 0", "line 1", "line 2"]


def test_what_is_missing_is_not_counted(run: Run) -> None:
    run.answer(0, 1, 2)
    counts = run.growing.finish()
    assert counts.total == 3
    assert names(run.path) == ["line 0", "line 1", "line 2"]


def test_a_file_that_cannot_grow_is_written_at_the_end(run: Run) -> None:
    run.grow_to(run.path.with_name("r" * 252))  # the name with .part behind it is too long for a file
    run.answer(0, 1, 2, 3)
    run.advance()
    assert run.growing.part is None
    assert run.growing.finish().total == 4
    assert names(run.path) == [f"line {i}" for i in range(4)]


@pytest.mark.parametrize("kind", ["file", "link", "pipe", "folder"])
def test_what_has_the_name_of_the_growing_file_and_is_not_one_stays_as_it_is(run: Run, kind: str) -> None:
    part = run.path.with_name("results.jsonl.part")
    precious = part if kind == "file" else run.path.with_name("precious")
    precious.write_text("my own download")
    if kind == "link":
        part.symlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(part)
    elif kind == "folder":
        part.mkdir()
    run.answer(0, 1, 2, 3)
    run.advance()
    assert run.growing.finish().total == 4
    assert names(run.path) == [f"line {i}" for i in range(4)]
    assert not run.path.is_symlink()
    assert precious.read_text() == "my own download"
    assert part.is_symlink() == (kind == "link")
    assert part.exists()


def test_the_mode_and_the_link_of_the_old_file_stay(run: Run, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.jsonl"
    real.write_text("")
    real.chmod(0o640)
    run.path.symlink_to(real)
    run.answer(0, 1, 2, 3)
    run.advance()
    run.growing.finish()
    assert run.path.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert names(real) == [f"line {i}" for i in range(4)]
