"""Cancelling, usage, stories, pauses, listings and help, as somebody at a terminal meets them."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from typing import Any

import pytest
from typer.main import get_command

from tests.support.processes import ROOT, Finished, Shop, SimulatorProcess, end, environment, wait_until
from worker.cli.main import app
from worker.errors import ExitCode

COMMANDS = {name: one for name, one in get_command(app).commands.items() if not one.hidden}  # type: ignore[attr-defined]


def submit(shop: Shop, count: int, name: str = "requests.jsonl") -> str:
    """The id of a batch of `count` requests."""
    with (shop.folder / name).open("w") as file:
        for i in range(count):
            body = {
                "model": "DeepSeek-V3.1",
                "messages": [{"role": "user", "content": f"Say {i} {name}."}],
            }
            line = {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    done = shop.antrean("submit", name, "--json")
    assert done.code == 0, done.err
    return str(done.json["batch_id"])


def job_ids(shop: Shop, batch: str) -> list[str]:
    """The ids of the ended jobs, as the output lines name them."""
    return [json.loads(line)["id"] for line in shop.antrean("results", batch).out.splitlines()]


def status(shop: Shop, batch: str) -> Any:
    return shop.antrean("status", batch, "--json").json


@pytest.mark.simulator("--latency", "4")
def test_cancelling_a_batch_ends_what_waits_and_keeps_what_is_paid_for(plant: Shop) -> None:
    batch = submit(plant, 30)
    worker = plant.worker(concurrency=4, lone_slots=0)
    wait_until(lambda: status(plant, batch)["jobs"]["running"] >= 4, within_s=20, what="four are running")
    done = plant.antrean("cancel", batch, "--json")
    assert (done.code, done.json["batch_id"]) == (0, batch)
    cancelled, asked = done.json["cancelled"], done.json["asked"]
    assert 0 < asked <= 4 + 2, "in a call, or claimed ahead of the slots"
    claimed = 30 - cancelled  # those of the moment, and whatever ended before on a busy machine
    assert claimed >= asked
    again = plant.antrean("cancel", batch)
    assert again.out.startswith("0 jobs cancelled")
    wait_until(lambda: status(plant, batch)["status"] == "cancelled", within_s=20, what="the calls ended")
    left = status(plant, batch)["jobs"]
    kept, uncalled = left["succeeded"], left["cancelled"] - cancelled
    assert (kept + uncalled, left["cancelled"]) == (claimed, 30 - kept)
    assert 0 <= uncalled <= 2, "one that waited for its slot for more than a second is not called any more"
    usage = plant.antrean("usage", "--by", "batch", "--json").json
    assert [(one["batch_id"], one["used"]) for one in usage["groups"]] == [(batch, kept)]
    assert plant.antrean("retry", batch, "--cancelled", "--json").json["queued"] == left["cancelled"]
    assert end(worker)[0] == 0


def test_one_job_is_cancelled_by_its_id_and_an_unknown_id_is_a_sentence(shop: Shop) -> None:
    batch = submit(shop, 2)
    database = shop.folder / ".antrean" / "antrean.db"
    with sqlite3.connect(database) as connection:
        first, second = (row[0] for row in connection.execute("SELECT id FROM jobs ORDER BY id"))
    connection.close()
    done = shop.antrean("cancel", first)
    assert (done.code, done.out) == (0, "the job is cancelled\n")
    again = shop.antrean("cancel", first, "--json")
    assert (again.code, again.json) == (
        0,
        {"job_id": first, "state": "cancelled", "cancelled": 0, "asked": 0},
    )
    assert "queued" in shop.antrean("show", second).out
    for wrong in (second[:8], batch[:20], "", "no-such-thing", "x" * 3_000, "[/red]", "%"):
        refused = shop.antrean("cancel", wrong)
        assert (refused.code, refused.out) == (2, "")
        assert "there is no batch and no job" in refused.err
        assert "Traceback" not in refused.err


def run_raw(shop: Shop, *args: bytes) -> Finished:
    """A command whose arguments need not be text."""
    done = subprocess.run(
        [sys.executable.encode(), b"-P", b"-m", b"worker.cli", *args],
        cwd=shop.folder,
        env=environment(shop.settings),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize("command", [b"cancel", b"show"])
def test_an_id_that_is_not_text_is_a_sentence_and_steers_no_terminal(shop: Shop, command: bytes) -> None:
    done = run_raw(shop, command, b"a\xff\x1b[2Jb")
    assert (done.code, done.out) == (2, "")
    assert "there is no" in done.err
    assert "\x1b[2J" not in done.err


@pytest.mark.simulator("--latency", "0.01", "--retry-after", "1", "--rate-429", "1")
def test_a_job_tells_its_whole_story(plant: Shop, simulator: SimulatorProcess) -> None:
    batch = submit(plant, 1)
    worker = plant.worker(backoff_base_s=0.1)
    wait_until(lambda: status(plant, batch)["jobs"]["waiting"] == 1, within_s=20, what="it waits")
    simulator.set_faults(rate_429=0.0)
    wait_until(lambda: status(plant, batch)["status"] == "completed", within_s=30, what="it is done")
    assert end(worker)[0] == 0

    [line_id] = job_ids(plant, batch)
    told = plant.antrean("show", line_id, "--json").json
    assert (told["state"], told["batch_id"], told["custom_id"], told["position"]) == (
        "succeeded",
        batch,
        "c0",
        1,
    )
    assert plant.antrean("show", told["id"], "--json").json == told
    assert "content" not in told
    assert (told["attempts"][0]["outcome"], told["attempts"][0]["http_status"]) == ("rate_limited", 429)
    last = told["attempts"][-1]
    assert (last["outcome"], last["is_used"], last["waited_ms"] > 0) == ("succeeded", True, True)
    assert last["started_at"].endswith("+00:00")
    assert told["result"]["finish_reason"] == "stop"

    shown = plant.antrean("show", told["id"])
    assert shown.code == 0
    for part in (batch, "attempt 1", "rate_limited", "waited", "request id", "result of attempt", "c0"):
        assert part in shown.out
    assert "Say 0" not in shown.out
    full = plant.antrean("show", told["id"], "--content")
    assert "Say 0" in full.out
    content = plant.antrean("show", told["id"], "--content", "--json").json["content"]
    assert content["request"]["messages"][0]["content"] == "Say 0 requests.jsonl."
    assert content["answer"]
    assert "is a batch" in plant.antrean("show", batch).err


def test_usage_is_added_up_by_whatever_is_asked(plant: Shop) -> None:
    first, second = submit(plant, 3), submit(plant, 2, "more.jsonl")
    worker = plant.worker()
    for batch in (first, second):
        wait_until(
            lambda batch=batch: status(plant, batch)["status"] == "completed",  # type: ignore[misc]
            within_s=30,
            what="all done",
        )
    assert end(worker)[0] == 0

    by_custom = plant.antrean("usage", "--by", "custom", "--json").json
    assert {one["custom_id"]: one["answered"] for one in by_custom["groups"]} == {"c0": 2, "c1": 2, "c2": 1}
    [model] = plant.antrean("usage", "--json").json["groups"]
    assert (model["model"], model["answered"], model["unused"]) == ("DeepSeek-V3.1", 5, 0)
    assert model["total_tokens"] == sum(one["total_tokens"] for one in by_custom["groups"]) > 0
    [day] = plant.antrean("usage", "--by", "day", "--batch", first, "--json").json["groups"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day["day"])
    assert day["answered"] == 3
    rows = list(csv.DictReader(io.StringIO(plant.antrean("usage", "--by", "batch", "--csv").out)))
    assert {(row["batch_id"], row["label"], row["answered"]) for row in rows} == {
        (first, "requests.jsonl", "3"),
        (second, "more.jsonl", "2"),
    }
    table = plant.antrean("usage", "--by", "batch").out
    assert first in table
    assert table.splitlines()[-1].startswith("all")
    since = plant.antrean("usage", "--since", "2999-01-01")
    assert (since.code, since.out) == (0, "")
    assert "no answered call" in since.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--since", "yesterday"), "is not a date"),
        (("--since", "2026-13-01"), "is not a date"),
        (("--json", "--csv"), "do not go together"),
        (("--batch", "batch_of_nobody"), "there is no batch"),
        (("--by", "moon"), "moon"),
    ],
)
def test_usage_that_cannot_be_told_is_a_sentence(
    shop: Shop, arguments: tuple[str, ...], sentence: str
) -> None:
    done = shop.antrean("usage", *arguments)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert "Traceback" not in done.err


def test_batches_are_listed_newest_first(shop: Shop) -> None:
    nothing = shop.antrean("batches")
    assert (nothing.code, nothing.out) == (0, "")
    older, newer = submit(shop, 2, "older.jsonl"), submit(shop, 3, "newer.jsonl")
    listed = shop.antrean("batches", "--json").json["batches"]
    assert [(one["batch_id"], one["label"], one["total"]) for one in listed] == [
        (newer, "newer.jsonl", 3),
        (older, "older.jsonl", 2),
    ]
    assert (listed[0]["status"], listed[0]["jobs"]["queued"]) == ("in_progress", 3)
    only = shop.antrean("batches", "--limit", "1").out
    assert newer in only
    assert older not in only
    assert shop.antrean("batches", "--limit", "0").code == 2


def test_a_pause_is_told_until_it_is_resumed(plant: Shop) -> None:
    endpoint = plant.settings["endpoint_name"]
    first = plant.antrean("pause", "it [bold]moves", "--json").json
    assert (first["endpoint"], first["paused"], first["changed"]) == (endpoint, True, True)
    again = plant.antrean("pause", "another reason")
    assert again.code == 0
    assert "it [bold]moves (it was paused before)" in again.out
    assert first["paused_at"] in again.out
    assert plant.antrean("status", "--json").json["paused"] == [
        {"endpoint": endpoint, "paused_at": first["paused_at"], "reason": "it [bold]moves"}
    ]
    assert "it [bold]moves" in plant.antrean("status").out
    assert plant.antrean("resume", "--json").json["changed"] is True
    assert "was not paused" in plant.antrean("resume").out
    assert plant.antrean("status", "--json").json["paused"] == []


def test_workers_are_listed_and_a_silent_one_is_marked(plant: Shop) -> None:
    assert "no worker" in plant.antrean("workers").err
    worker = plant.worker(concurrency=3, lone_slots=1)
    [one] = plant.antrean("workers", "--json").json["workers"]
    assert (one["pid"], one["hostname"], one["running"]) == (worker.pid, socket.gethostname(), 0)
    assert (one["lease_s"], one["is_silent"]) == (2.0, False)
    worker.send_signal(signal.SIGKILL)
    worker.wait(10)
    wait_until(
        lambda: plant.antrean("workers", "--json").json["workers"][0]["is_silent"],
        within_s=15,
        what="it is silent",
    )
    assert "silent for longer than its lease of 2 s" in plant.antrean("workers").out


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_says_what_it_does_and_gives_an_example(command: str) -> None:
    one = COMMANDS[command]
    summary, *_ = (one.help or "").split("\n\n")
    assert summary.endswith(".")
    assert f"Example: antrean {command}" in (one.epilog or "") or f" antrean {command}" in (one.epilog or "")
    for param in one.params:
        assert getattr(param, "help", None), f"{command} {param.name}"


def test_the_root_help_tells_the_exit_codes(shop: Shop) -> None:
    told = " ".join(shop.antrean("--help").out.split())
    for code in ExitCode:
        assert re.search(rf"\b{code.value} [a-z]", told), code


def sections() -> dict[str, str]:
    page = (ROOT / "docs/commands.md").read_text()
    parts = re.split(r"^## `antrean (\S+)`$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_on_commands_has_a_section_for_each_and_for_no_other() -> None:
    assert set(sections()) == set(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_page_on_commands_names_every_option(command: str) -> None:
    section = sections().get(command, "")
    options = {opt for param in COMMANDS[command].params for opt in param.opts if opt.startswith("-")}
    missing = [opt for opt in sorted(options - {"--help", "-h"}) if f"`{opt}`" not in section]
    assert not missing, f"docs/commands.md says nothing of antrean {command} {' '.join(missing)}"
    named = set(re.findall(r"^\| `(--?[a-z0-9-]+)`", section, re.MULTILINE))
    assert named <= options, f"antrean {command} has no {' '.join(sorted(named - options))}"
    assert "```sh\n" in section
    assert "Exit codes:" in section
