"""`antrean run`, as a newcomer types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from api_client.simulator import count_tokens
from tests.support.audit import assert_sound, states
from tests.support.processes import (
    ROOT,
    Shop,
    SimulatorProcess,
    end,
    environment,
    processes_under,
    wait_until,
)
from worker.settings import load_settings
from worker.storage.engine import Ledger, open_ledger
from worker.storage.tables import attempts, requests, results, usage

WORDS = "A queue keeps what it was given. Nobody pays for the same answer twice."


def write_documents(folder: Path, count: int) -> None:
    documents = folder / "documents"
    documents.mkdir(exist_ok=True)
    for i in range(count):
        (documents / f"{i:04}.txt").write_text(f"Note {i}. {WORDS}")
    (folder / "prompt.md").write_text(
        "---\ntemperature: 0.5\nsystem: Be brief.\n---\nSummarise: {{ text }}\n"
    )


def ledger_of(shop: Shop, *, is_simulated: bool = False) -> Ledger:
    home = Path(str(shop.settings["home"]))
    return open_ledger(load_settings(home=home / "simulation" if is_simulated else home, _env_file=None))


def result_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.full
def test_a_simulated_run_with_faults_ends_every_job_and_a_second_one_calls_nothing(shop: Shop) -> None:
    write_documents(shop.folder, 1000)
    command = [
        "run",
        "documents",
        "--prompt",
        "prompt.md",
        "--simulate",
        "--fault-rate",
        "0.2",
        "--latency",
        "0.05",
    ]
    first = shop.antrean(
        *command, "--json", concurrency=64, backoff_base_s=0.1, max_attempts=12, bad_response_max_attempts=12
    )

    assert (first.code, first.json["succeeded"], first.json["failed"]) == (0, 1000, 0), first.err
    lines = result_lines(shop.folder / "results.jsonl")
    assert [line["custom_id"] for line in lines] == [f"{i:04}.txt" for i in range(1000)]
    assert all(line["error"] is None and line["response"]["body"]["choices"] for line in lines)  # type: ignore[index]

    ledger = ledger_of(shop, is_simulated=True)
    assert states(ledger) == {"succeeded": 1000}
    assert_sound(ledger)
    with ledger.read() as connection:
        made = connection.execute(select(func.count()).select_from(attempts)).scalar_one()
        tokens = connection.execute(select(func.sum(usage.c.total_tokens))).scalar_one()
        pairs = connection.execute(
            select(requests.c.body, results.c.raw).join(results, results.c.job_id == requests.c.job_id)
        ).all()
    assert made > 1100, "a fifth of the calls failed"
    assert 0.05 <= first.json["latency_s"]["p50"] <= first.json["latency_s"]["p99"]
    assert sum(first.json["failed_calls"].values()) == made - 1000
    assert first.json["retried_calls"] == first.json["failed_calls"], "no job failed"
    counted = 0
    for body, raw in pairs:
        counted += sum(count_tokens(message["content"]) for message in json.loads(body)["messages"])
        counted += count_tokens(json.loads(raw)["choices"][0]["message"]["content"])
    assert counted == tokens, "usage is summed right: recounted from the texts themselves"

    second = shop.antrean(*command, "--json")
    assert (second.code, second.json["already_done"], second.json["seconds"] < 15) == (0, 1000, True)
    assert (second.json["latency_s"], second.json["failed_calls"]) == (None, {})
    with ledger.read() as connection:
        assert connection.execute(select(func.count()).select_from(attempts)).scalar_one() == made
    assert result_lines(shop.folder / "results.jsonl") == lines
    ledger.dispose()
    assert processes_under(shop.folder) == []


@pytest.mark.full
def test_only_changed_new_and_failed_documents_are_called_again(shop: Shop, simulator) -> None:  # type: ignore[no-untyped-def]
    write_documents(shop.folder, 20)
    simulator.set_faults(rate_500=1.0)
    failed = shop.antrean("run", "documents", "-p", "prompt.md", "--json", max_attempts=1)
    assert (failed.code, failed.json["failed"], failed.json["failures"]) == (1, 20, {"server_error": 20})
    errors = result_lines(shop.folder / "results.jsonl")
    assert len(errors) == 20
    assert errors[0]["response"]["status_code"] == 500  # type: ignore[index]

    simulator.set_faults(rate_500=0.0)
    assert shop.antrean("run", "documents", "-p", "prompt.md").code == 0
    paid = simulator.stats()["paid"]
    assert paid == 20
    (shop.folder / "documents" / "0003.txt").write_text("Changed. " + WORDS)
    (shop.folder / "documents" / "new.md").write_text("New. " + WORDS)
    again = shop.antrean("run", "documents", "-p", "prompt.md", "--json")
    assert (again.code, again.json["jobs"], again.json["already_done"]) == (0, 21, 19)
    assert simulator.stats()["paid"] == paid + 2


def test_a_simulation_has_a_ledger_of_its_own(shop: Shop, simulator) -> None:  # type: ignore[no-untyped-def]
    write_documents(shop.folder, 5)
    assert shop.antrean("run", "documents", "-p", "prompt.md", "--simulate").code == 0
    assert simulator.stats()["calls"] == 0
    real = shop.antrean("run", "documents", "-p", "prompt.md", "--json")
    assert (real.json["already_done"], simulator.stats()["paid"]) == (0, 5)


@pytest.mark.simulator("--latency", "1.0")
def test_ctrl_c_leaves_nothing_running_and_nothing_lost_and_the_next_call_goes_on(
    shop: Shop, simulator
) -> None:  # type: ignore[no-untyped-def]
    write_documents(shop.folder, 60)
    command = ["worker.cli", "run", "documents", "-p", "prompt.md", "-o", "out.jsonl"]
    running = shop.begin(*command, concurrency=16)
    wait_until(lambda: simulator.stats()["in_flight"] >= 16, within_s=30, what="calls are in flight")

    code, seconds = end(running, signal.SIGINT)

    assert code == 130
    assert seconds < 10
    assert processes_under(shop.folder) == []
    ledger = ledger_of(shop)
    after = states(ledger)
    assert after["running"] == 0
    assert after["succeeded"] == simulator.stats()["paid"] >= 16, "calls in flight ended and were kept"
    last_words = (shop.folder / "command.log").read_text().splitlines()[-1]
    told = re.match(r"(batch_\w+): (\d+) of 60 jobs done, 0 failed, (\d+) left; nothing is lost", last_words)
    assert told, last_words
    assert (int(told[2]), int(told[3])) == (after["succeeded"], 60 - after["succeeded"])
    done = shop.antrean(*command[1:], "--json", concurrency=32)
    assert (done.code, done.json["succeeded"]) == (0, 60)
    assert simulator.stats()["paid"] == 60
    assert_sound(ledger)
    ledger.dispose()


@pytest.mark.simulator("--latency", "1.0")
def test_a_killed_run_takes_its_stack_with_it(shop: Shop, simulator) -> None:  # type: ignore[no-untyped-def]
    write_documents(shop.folder, 30)
    running = shop.begin("worker.cli", "run", "documents", "-p", "prompt.md", grace_s=1)
    wait_until(lambda: simulator.stats()["in_flight"], within_s=30, what="calls are in flight")
    end(running, signal.SIGKILL)
    wait_until(lambda: processes_under(shop.folder) == [], within_s=15, what="no process is left")


@pytest.mark.simulator("--latency", "0.5")
def test_two_runs_at_once_share_one_stack_and_call_each_document_once(shop: Shop, simulator) -> None:  # type: ignore[no-untyped-def]
    write_documents(shop.folder, 40)
    both = [
        shop.begin("worker.cli", "run", "documents", "-p", "prompt.md", "-o", f"{i}.jsonl", log=f"{i}.log")
        for i in range(2)
    ]
    for i, process in enumerate(both):
        assert process.wait(60) == 0, (shop.folder / f"{i}.log").read_text()
    assert simulator.stats()["calls"] == 40
    assert (shop.folder / "0.jsonl").read_bytes() == (shop.folder / "1.jsonl").read_bytes()
    assert processes_under(shop.folder) == []


def test_the_readmes_first_command_works_on_the_examples(shop: Shop) -> None:
    started_s = time.monotonic()
    done = shop.antrean(
        "run", str(ROOT / "examples/documents"), "--prompt", str(ROOT / "examples/summarise.md"), "--simulate"
    )
    assert done.code == 0, done.err
    assert "jobs succeeded" in done.out
    assert time.monotonic() - started_s < 30


def test_the_commands_that_a_stopped_simulation_names_work_as_they_stand(shop: Shop) -> None:
    """Its batch is in a ledger of its own, which `antrean results BATCH` alone would not look into."""
    write_documents(shop.folder, 40)
    (shop.folder / "bin").mkdir()
    command = shop.folder / "bin" / "antrean"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m worker.cli "$@"\n')
    command.chmod(0o755)
    (shop.folder / "it's").mkdir()
    shop.settings |= {
        "home": shop.folder / "it's" / "home",
        "database_url": f"sqlite:///{shop.folder}/of the service.db",
    }
    shop.antrean("migrate")
    simulation = ("run", "documents", "-p", "prompt.md", "--simulate", "--latency", "0.2")
    running = shop.begin("worker.cli", *simulation, concurrency=2, grace_s=5)
    part = shop.folder / "results.jsonl.part"
    wait_until(lambda: part.exists() and part.stat().st_size, within_s=30, what="the first lines are there")
    assert end(running, signal.SIGINT)[0] == 130
    [hint] = re.findall(r"`(.* results batch_.*)` has all", (shop.folder / "command.log").read_text())
    path = f"{shop.folder}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", hint],
        cwd=shop.folder,
        env=environment(shop.settings) | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.startswith(part.read_text())) == (0, True), done.stderr

    again = shop.antrean(*simulation, concurrency=32)
    assert (again.code, "has all" in again.err) == (0, False)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.simulator("--latency", "0.5")
def test_what_somebody_walked_away_from_is_not_paid_for_by_the_next_run(shop: Shop, simulator) -> None:  # type: ignore[no-untyped-def]
    write_documents(shop.folder, 100)
    (shop.folder / "other").mkdir()
    (shop.folder / "other" / "one.txt").write_text("Only this. " + WORDS)
    for number in (signal.SIGINT, signal.SIGKILL):
        running = shop.begin("worker.cli", "run", "documents", "-p", "prompt.md", concurrency=8, grace_s=5)
        before = simulator.stats()["calls"]
        wait_until(
            lambda before=before: simulator.stats()["calls"] > before, within_s=30, what="calls are made"
        )  # type: ignore[misc]
        end(running, number)
        wait_until(lambda: processes_under(shop.folder) == [], within_s=15, what="the stack is gone")
        (shop.folder / "other" / "one.txt").write_text(f"Only this {number}. " + WORDS)
        calls = simulator.stats()["calls"]
        other = shop.antrean("run", "other", "-p", "prompt.md", "-o", "other.jsonl")
        assert other.code == 0, other.err
        assert simulator.stats()["calls"] == calls + 1
        assert ("left from an earlier run" in other.err) == (number == signal.SIGKILL)
    done = shop.antrean("run", "documents", "-p", "prompt.md", "--json", concurrency=32)
    assert (done.code, done.json["succeeded"]) == (0, 100)
    assert "were done before" in done.err


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.1")
def test_an_endpoint_that_goes_away_for_a_while_fails_no_job(shop: Shop) -> None:
    write_documents(shop.folder, 120)
    flaky = SimulatorProcess("--latency", "0.2")
    shop.settings["base_url"] = flaky.url
    shop.settings["endpoint_name"] = "flaky"
    running = shop.begin("worker.cli", "run", "documents", "-p", "prompt.md", concurrency=4, max_attempts=2)
    wait_until(lambda: flaky.stats()["paid"] > 10, within_s=30, what="the run is in its middle")
    port = flaky.url.rsplit(":", 1)[1]
    flaky.close()
    log = shop.folder / "command.log"
    wait_until(
        lambda: "waiting: unreachable" in log.read_text(), within_s=20, what="it says what it waits for"
    )
    flaky = SimulatorProcess("--latency", "0.05", "--port", port)
    try:
        assert running.wait(60) == 0, log.read_text()
    finally:
        flaky.close()
