"""The other commands, as somebody scripts them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from sqlalchemy import Table, func, select

from tests.acceptance.test_run import ledger_of
from tests.support.processes import ROOT, Shop, SimulatorProcess, end, environment, wait_until
from worker.storage.migrating import HEAD
from worker.storage.tables import batches, jobs
from worker.storage.tables import requests as requests_table


def write_requests(folder: Path, count: int) -> Path:
    path = folder / "requests.jsonl"
    with path.open("w") as file:
        for i in range(count):
            body = {
                "model": "DeepSeek-V3.1",
                "messages": [{"role": "user", "content": f"Say {i}."}],
                "seed": i,
            }
            line = {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line if i % 2 else body) + "\n")
    return path


def test_submit_then_a_worker_then_status_results_and_retry(shop: Shop, simulator: SimulatorProcess) -> None:
    write_requests(shop.folder, 40)
    simulator.set_faults(rate_500=1.0)
    submitted = shop.antrean("submit", "requests.jsonl", "--json")
    assert (submitted.code, submitted.json["total"], submitted.json["new"]) == (0, 40, 40), submitted.err
    batch = submitted.json["batch_id"]
    again = shop.antrean("submit", "requests.jsonl", "--json")
    assert (again.json["batch_id"], again.json["new"], again.json["already_known"]) == (batch, 0, 40)
    waiting = shop.antrean("status", batch, "--json").json
    assert (waiting["status"], waiting["jobs"]["queued"]) == ("in_progress", 40)

    worker = shop.begin("worker.cli", "worker", log="worker.log", max_attempts=1)
    wait_until(
        lambda: shop.antrean("status", batch, "--json").json["jobs"]["failed"] == 40,
        within_s=40,
        what="all failed",
    )
    failed = shop.antrean("results", batch, "-o", "failed.jsonl")
    assert failed.code == 0
    lines = [json.loads(line) for line in (shop.folder / "failed.jsonl").read_text().splitlines()]
    assert {line["response"]["status_code"] for line in lines} == {500}

    simulator.set_faults(rate_500=0.0)
    assert shop.antrean("retry", batch, "--kind", "timeout", "--json").json["queued"] == 0
    assert shop.antrean("retry", batch, "--failed", "--json").json["queued"] == 40
    wait_until(
        lambda: shop.antrean("status", batch, "--json").json["status"] == "completed",
        within_s=40,
        what="all done",
    )
    out = shop.antrean("results", batch)
    done = [json.loads(line) for line in out.out.splitlines()]
    assert [line["custom_id"] for line in done][1::2] == [f"c{i}" for i in range(1, 40, 2)]
    assert all(line["response"]["body"]["usage"]["total_tokens"] for line in done)
    whole = shop.antrean("status", "--json").json
    assert (whole["jobs"]["succeeded"], len(whole["workers"])) == (40, 1)
    assert end(worker)[0] == 0
    assert shop.antrean("status", "--json").json["workers"] == []


def test_submit_takes_standard_input_and_again_submits_anew(shop: Shop) -> None:
    path = write_requests(shop.folder, 4)
    piped = subprocess.run(
        [sys.executable, "-P", "-m", "worker.cli", "submit", "-", "--json"],
        cwd=shop.folder,
        env=environment(shop.settings),
        input=path.read_bytes(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    first = json.loads(piped.stdout)
    assert shop.antrean("submit", "requests.jsonl", "--json").json["batch_id"] == first["batch_id"]
    anew = shop.antrean("submit", "requests.jsonl", "--json", "--again").json
    assert (anew["new"], anew["batch_id"] != first["batch_id"]) == (4, True)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_submission_that_was_stopped_goes_on_and_queues_nothing_twice(shop: Shop, number: int) -> None:
    write_requests(shop.folder, 60_000)
    assert shop.antrean("migrate").code == 0
    ledger = ledger_of(shop)

    def count(rows: Table) -> int:
        with ledger.read() as connection:
            return int(connection.execute(select(func.count()).select_from(rows)).scalar_one())

    submitting = shop.begin("worker.cli", "submit", "requests.jsonl", log="submit.log")
    wait_until(lambda: count(jobs) > 0, within_s=40, what="its first rows")
    end(submitting, number)
    written = count(jobs)
    assert 0 < written < 60_000
    if number == signal.SIGINT:
        last_words = (shop.folder / "submit.log").read_text().splitlines()[-1]
        assert f": {written:,} of 60,000 requests are written down; the same command" in last_words
    again = shop.antrean("submit", "requests.jsonl", "--json").json
    assert (again["total"], again["new"], again["already_known"]) == (60_000, 60_000 - written, written)
    assert (count(jobs), count(requests_table), count(batches)) == (60_000, 60_000, 1)
    ledger.dispose()


def test_another_default_model_is_another_batch_of_the_same_lines(shop: Shop) -> None:
    line = {"messages": [{"role": "user", "content": "Hi."}]}
    (shop.folder / "bare.jsonl").write_text(json.dumps(line) + "\n")
    first, second, again = (
        shop.antrean("submit", "bare.jsonl", "--no-check", "--model", model, "--json").json
        for model in ("one", "two", "one")
    )
    assert (first["new"], second["new"], again["new"]) == (1, 1, 0)
    assert first["batch_id"] == again["batch_id"] != second["batch_id"]


def test_models_lists_what_the_endpoint_runs(shop: Shop) -> None:
    assert shop.antrean("models").out == "DeepSeek-V3.1\n"
    assert shop.antrean("models", "--json").json == {"models": ["DeepSeek-V3.1"]}


@pytest.mark.simulator("--auth-header", "api-key", "--key", "k", "--latency", "0")
def test_the_other_header_style_is_found_by_itself(shop: Shop) -> None:
    assert shop.antrean("models").code == 0
    assert shop.antrean("models", auth_style="bearer").code == 5


def test_migrate_can_be_repeated(shop: Shop) -> None:
    url = f"sqlite:///{shop.folder}/own.db"
    assert f"revision {HEAD}" in shop.antrean("migrate", database_url=url).out
    assert "already" in shop.antrean("migrate", database_url=url).out


def test_simulate_serves_until_it_is_stopped_and_a_used_port_is_a_sentence(shop: Shop) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = shop.antrean("simulate", "--port", str(port))
        assert (refused.code, "--port" in refused.err) == (4, True)
    serving = shop.begin("worker.cli", "simulate", "--port", str(port), "--key", "s", log="simulate.log")
    log = shop.folder / "simulate.log"
    wait_until(
        lambda: f"listening on http://127.0.0.1:{port}" in log.read_text(), within_s=20, what="it listens"
    )
    assert requests.get(f"http://127.0.0.1:{port}/v1/models", timeout=5).status_code == 401
    assert end(serving)[0] == 0


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "submit",
        "status",
        "results",
        "retry",
        "check",
        "migrate",
        "worker",
        "models",
        "simulate",
        "up",
        "flower",
    ],
)
def test_every_command_has_help_with_an_example(shop: Shop, command: str) -> None:
    done = shop.antrean(command, "--help")
    assert done.code == 0
    assert "Example:" in done.out
    assert f"antrean {command}" in done.out


def test_settings_come_from_files_in_the_current_folder_too(shop: Shop) -> None:
    url = shop.settings.pop("base_url")
    (shop.folder / ".env").write_text(f"ANTREAN_BASE_URL={url}\n")
    (shop.folder / "antrean.toml").write_text('model = "nothing-like-it"\nconcurrency = 3\n')
    done = shop.antrean("check", "--json")
    assert (done.code, "nothing-like-it" in done.out) == (5, True)


def test_the_changelog_and_the_licence_are_there() -> None:
    assert "Unreleased" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


@pytest.mark.full
@pytest.mark.slow
def test_a_locale_without_utf_8_ends_no_command(shop: Shop) -> None:
    (shop.folder / "documents").mkdir()
    (shop.folder / "documents" / "one.txt").write_text("Na\u00efve \u2014 \u65e5\u672c.", encoding="utf-8")
    (shop.folder / "prompt.md").write_text("R\u00e9sum\u00e9: {{ text }}", encoding="utf-8")
    env = environment(shop.settings) | {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}

    def antrean(*args: str) -> str:
        command = [sys.executable, "-P", "-m", "worker.cli", *args]
        done = subprocess.run(command, cwd=shop.folder, env=env, capture_output=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("ascii")

    antrean("run", "documents", "--prompt", "prompt.md")
    [batch] = json.loads(antrean("batches", "--json"))["batches"]
    assert "one.txt" in (shop.folder / "results.jsonl").read_text(encoding="utf-8")
    for command in ("batches", "status", "usage", "check", "doctor", "--help", "run --help"):
        assert antrean(*command.split())
    line = json.loads((shop.folder / "results.jsonl").read_text(encoding="utf-8"))
    assert "R\\u00e9sum\\u00e9: Na\\u00efve \\u2014 " in antrean("show", line["id"], "--content")
    shown = json.loads(antrean("show", line["id"], "--content", "--json"))
    assert shown["content"]["request"]["messages"][0]["content"].startswith("R\u00e9sum\u00e9: Na\u00efve")
    assert " - " in antrean("status", batch["batch_id"]), "signs of ours have a form in ASCII"
