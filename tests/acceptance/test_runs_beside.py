"""Runs that share documents, and what people type beside them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.support.processes import Shop, SimulatorProcess, end, processes_under, wait_until
from worker.settings import load_settings
from worker.storage.engine import open_ledger

pytestmark = pytest.mark.full


def write_documents(folder: Path, count: int) -> None:
    (folder / "docs" / "sub").mkdir(parents=True)
    for i in range(count):
        (folder / "docs" / "sub" / f"{i}.txt").write_text(f"Document {i}.")
    (folder / "p.md").write_text("Sum up: {{ text }}")


def names(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


@pytest.mark.simulator("--latency", "0.6")
def test_a_run_ends_although_one_that_wants_its_jobs_too_is_stopped(
    shop: Shop, simulator: SimulatorProcess
) -> None:
    """T1: the second took the jobs over, and let go of them when it was stopped."""
    write_documents(shop.folder, 8)
    first = shop.begin("worker.cli", "run", "docs", "-p", "p.md", "-o", "a.jsonl", log="a.log", concurrency=1)
    wait_until(lambda: simulator.stats()["calls"] >= 1, within_s=30, what="the first run is at work")
    second = shop.begin("worker.cli", "run", "docs/sub", "-p", "p.md", "-o", "b.jsonl", log="b.log")
    log = shop.folder / "b.log"
    part = shop.folder / "b.jsonl.part"
    wait_until(lambda: part.exists() and part.read_text(), within_s=20, what="the second has a line")
    code, _ = end(second, signal.SIGINT)
    assert code == 130, log.read_text()
    assert first.wait(30) == 0, (shop.folder / "a.log").read_text()
    assert names(shop.folder / "a.jsonl") == [f"sub/{i}.txt" for i in range(8)]
    assert not (shop.folder / "b.jsonl").exists()
    assert set(names(part)) < {f"{i}.txt" for i in range(8)}, "what the stopped one had, under its own names"
    assert "b.jsonl.part" in log.read_text()

    again = shop.antrean("run", "docs/sub", "-p", "p.md", "-o", "b.jsonl", "--json")
    assert (again.code, again.json["already_done"], again.json["missing"]) == (0, 8, 0)
    assert names(shop.folder / "b.jsonl") == [f"{i}.txt" for i in range(8)]
    assert not part.exists()
    assert simulator.stats()["calls"] == 8
    batch = again.json["batch_id"]
    assert shop.antrean("results", batch).out == (shop.folder / "b.jsonl").read_text()
    status = shop.antrean("status", batch, "--json").json
    assert (status["status"], status["jobs"]["succeeded"], status["held"]) == ("completed", 8, False)
    assert status["usage"]["total_tokens"] > 0
    tokens = shop.antrean("usage", "--batch", batch, "--json").json["total"]["total_tokens"]
    assert status["usage"]["total_tokens"] == tokens
    assert shop.antrean("usage", "--json").json["total"]["total_tokens"] == tokens
    job = json.loads((shop.folder / "b.jsonl").read_text().splitlines()[0])["id"]
    story = shop.antrean("show", job).out
    assert "sub/0.txt" in story
    assert batch in story, "both batches are named"
    assert processes_under(shop.folder) == []


@pytest.mark.simulator("--latency", "0.4")
def test_a_run_that_lasts_longer_than_the_age_of_a_prune_has_all_its_lines(
    shop: Shop, simulator: SimulatorProcess
) -> None:
    """T21: it said 6 of 6, and wrote what the prune had left."""
    write_documents(shop.folder, 6)
    running = shop.begin("worker.cli", "run", "docs", "-p", "p.md", "-o", "r.jsonl", concurrency=1)
    wait_until(lambda: simulator.stats()["paid"] >= 2, within_s=30, what="two documents are done")
    pruned = shop.antrean("prune", "--all", "--yes", "--json").json
    assert (pruned["jobs"], pruned["spared"] >= 2) == (0, True)
    assert running.wait(30) == 0, (shop.folder / "command.log").read_text()
    assert names(shop.folder / "r.jsonl") == [f"sub/{i}.txt" for i in range(6)]

    assert simulator.stats()["calls"] == 6

    batch = shop.antrean("batches", "--json").json["batches"][0]["batch_id"]
    ledger = open_ledger(load_settings(home=shop.folder / ".antrean", _env_file=None))
    with ledger.write() as connection:  # as if two of them were old
        connection.exec_driver_sql(
            "UPDATE jobs SET created_at_ms = 1, ended_at_ms = 2 WHERE position IN (2, 5)"
        )
    ledger.dispose()
    assert shop.antrean("prune", "--older-than", "1h", "--yes").out == "2 jobs removed\n"
    left = shop.antrean("results", batch, "-o", "left.jsonl")
    assert "2 of 6 lines are missing: their jobs were pruned" in left.err
    assert names(shop.folder / "left.jsonl") == [f"sub/{i}.txt" for i in (0, 2, 3, 5)]


def test_retry_of_a_run_that_has_ended_is_work_for_any_worker(
    shop: Shop, simulator: SimulatorProcess
) -> None:
    """A run that has ended is held, so that nobody pays for what is left of it; who says retry wants it."""
    write_documents(shop.folder, 2)
    simulator.set_faults(rate_500=1.0)
    failed = shop.antrean("run", "docs", "-p", "p.md", "--json", max_attempts=1)
    assert (failed.code, failed.json["failed"]) == (1, 2)
    simulator.set_faults(rate_500=0.0)
    batch = failed.json["batch_id"]
    assert shop.antrean("retry", batch, "--failed", "--json").json["queued"] == 2
    status = shop.antrean("status", batch, "--json").json
    assert (status["held"], status["jobs"]["queued"]) == (False, 2)
