"""Relays, runs and submitters that do the same thing at the same time: one job each, one call each, no deadlock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select

from tests.support.arena import MODEL, Arena
from tests.support.processes import environment
from worker.storage.tables import batches, jobs

_PRODUCER = """
import random, sys
from worker.tasks import complete_chat
seed, count = int(sys.argv[1]), int(sys.argv[2])
ids = [f"report-{i:05}" for i in range(count)]
random.Random(seed).shuffle(ids)
print("ready", flush=True)
sys.stdin.readline()
for id_ in ids:
    request = {"model": sys.argv[3], "messages": [{"role": "user", "content": f"Tell {id_}."}]}
    assert complete_chat.apply_async(args=[request], kwargs={"batch": "nightly"}, task_id=id_).id == id_
"""


def deadlocks(arena: Arena) -> int:
    """Deadlocks that PostgreSQL has counted; SQLite knows none."""
    if arena.postgres is None:
        return 0
    with arena.postgres.connect() as connection:
        row = connection.execute("SELECT sum(deadlocks) FROM pg_stat_database").fetchone()
    assert row is not None
    return int(row[0])


def write_requests(path: Path, count: int) -> None:
    lines = (
        {
            "custom_id": f"line-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": [{"role": "user", "content": f"Tell {i}."}]},
        }
        for i in range(count)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def count_batches(arena: Arena) -> int:
    with arena.ledger.read() as connection:
        return int(connection.execute(select(func.count()).select_from(batches)).scalar_one())


@pytest.mark.simulator("--latency", "0.05")
def test_two_relays_publish_many_small_batches(arena: Arena) -> None:
    for _ in range(2):
        arena.worker(concurrency=arena.size(32, 8))
    for i in range(arena.size(150, 20)):
        arena.queue(10, batch=f"batch_{i:04}", is_bulk=i % 5 != 0)
    arena.conclude("two relays at once", most_extra_calls=0)
    with arena.ledger.read() as connection:
        assert connection.execute(select(func.count(jobs.c.worker_id.distinct()))).scalar_one() == 2
    assert deadlocks(arena) == 0
    assert "relay.stalled" not in arena.worker_log()


def test_two_runs_of_one_input_pay_for_each_document_once(arena: Arena) -> None:
    count = arena.size(400, 40)
    documents = arena.folder / "documents"
    documents.mkdir()
    for i in range(count):
        (documents / f"{i:04}.txt").write_text(f"Note {i}.")
    (arena.folder / "prompt.md").write_text("Summarise: {{ text }}\n")
    del arena.shop.settings["broker_url"]  # the embedded one, which both share with the home
    runs = [
        arena.shop.begin(
            "worker.cli", "run", "documents", "-p", "prompt.md", "-o", f"{name}.jsonl", "--json", log=name
        )
        for name in ("one", "two")
    ]
    codes = [run.wait(90) for run in runs]
    said = [(arena.folder / name).read_text() for name in ("one", "two")]
    assert codes == [0, 0], said
    for name in ("one", "two"):
        lines = [json.loads(line) for line in (arena.folder / f"{name}.jsonl").read_text().splitlines()]
        assert [line["custom_id"] for line in lines] == [f"{i:04}.txt" for i in range(count)]
        assert all(line["response"]["status_code"] == 200 for line in lines)
    arena.queued = count
    arena.conclude("two runs at once", most_extra_calls=0)
    assert count_batches(arena) == 1
    assert deadlocks(arena) == 0


@pytest.mark.simulator("--latency", "0.05")
def test_ten_submitters_of_one_file_make_one_batch(arena: Arena) -> None:
    count = arena.size(3000, 200)
    write_requests(arena.folder / "requests.jsonl", count)
    arena.worker(concurrency=32)
    submitters = [
        arena.shop.begin("worker.cli", "submit", "requests.jsonl", "--json", log=f"submit{i}")
        for i in range(arena.size(10, 4))
    ]
    codes = [submitter.wait(90) for submitter in submitters]
    said = [(arena.folder / f"submit{i}").read_text() for i in range(len(codes))]
    assert set(codes) == {0}, said
    told = [json.loads(one[one.index("{") :]) for one in said]
    assert len({one["batch_id"] for one in told}) == 1
    assert {one["total"] for one in told} == {count}
    assert sum(one["new"] for one in told) == count
    arena.queued = count
    arena.conclude(f"{len(codes)} submitters of one file", most_extra_calls=0)
    assert count_batches(arena) == 1
    assert deadlocks(arena) == 0


@pytest.mark.simulator("--latency", "0.05")
def test_ten_producers_of_the_same_task_ids_make_one_job_each(arena: Arena) -> None:
    count = arena.size(300, 30)
    arena.worker(concurrency=16)
    producers = []
    for seed in range(arena.size(10, 4)):
        producer = subprocess.Popen(
            [sys.executable, "-c", _PRODUCER, str(seed), str(count), MODEL],
            cwd=arena.folder,
            env=environment(arena.shop.settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        arena.shop.started.append(producer)
        producers.append(producer)
    for producer in producers:
        assert producer.stdout is not None
        assert producer.stdout.readline() == b"ready\n"
    for producer in producers:
        assert producer.stdin is not None
        producer.stdin.write(b"\n")
        producer.stdin.flush()
    for producer in producers:
        producer.communicate(timeout=90)
    assert {producer.returncode for producer in producers} == {0}
    arena.queued = count
    arena.conclude(f"{len(producers)} producers of the same ids", most_extra_calls=0)
    with arena.ledger.read() as connection:
        assert connection.execute(select(func.count()).select_from(jobs)).scalar_one() == count
    assert count_batches(arena) == 1
    assert deadlocks(arena) == 0
