"""What people see in a narrow terminal, and what programs read from a pipe instead."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import sqlite3
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from schemas.job import JobState
from tests.acceptance.test_commands_more import submit
from tests.support.processes import Shop, environment

COMMANDS = ("status", "jobs", "batches", "usage", "workers", "doctor", "check")
HELD = "UPDATE batches SET held_at_ms = 1, kind = 'run'"


def in_terminal(shop: Shop, *args: str, columns: int = 60) -> list[str]:
    """The lines that a command writes to a terminal, to either stream."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = environment(shop.settings) | {"TERM": "xterm-256color"}
    del env["COLUMNS"]
    command = subprocess.Popen(
        [sys.executable, "-P", "-m", "worker.cli", *args],
        cwd=shop.folder,
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    told = b""
    try:
        while some := os.read(ours, 65536):
            told += some
    except OSError:  # the other side is closed
        pass
    finally:
        os.close(ours)
        command.wait(60)
    text = re.sub("\x1b\\[[012;]*m", "", told.decode())  # bold, dim: no colour, as the environment asks
    return text.replace("\r\n", "\n").splitlines()


def change(folder: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(folder / ".antrean" / "antrean.db")
    with connection:
        connection.execute(statement, values)
    connection.close()


@pytest.mark.full
def test_no_line_is_wider_than_the_terminal(shop: Shop) -> None:
    batch = submit(shop, 2)
    change(shop.folder, HELD)
    for command in COMMANDS:
        lines = in_terminal(shop, command)
        assert lines, command
        assert all(len(line) <= 60 for line in lines), (command, lines)
    assert f"{batch}  in_progress, held" in in_terminal(shop, "batches")


def test_a_sentence_is_broken_between_words_and_is_one_line_in_a_pipe(shop: Shop) -> None:
    command = ("results", "batch_of_nobody_at_all_that_is_rather_long")
    refused = shop.antrean(*command)
    [sentence] = refused.err.splitlines()
    lines = in_terminal(shop, *command)
    assert len(lines) == 3
    assert " ".join(line.strip() for line in lines) == sentence
    assert in_terminal(shop, *command, columns=120) == [sentence]


def test_a_story_fits_a_terminal_and_is_a_line_a_fact_in_a_pipe(shop: Shop) -> None:
    submit(shop, 1)
    message = "The model refuses. " * 30
    change(
        shop.folder,
        "UPDATE jobs SET state = 'failed', failure_kind = 'rejected', http_status = 400,"
        " failure_message = ?, custom_id = ?",
        f"{message}\x1b[31m",
        "[bold]:smile: \u202eodd",
    )
    job = shop.antrean("jobs", "--json").json["jobs"][0]["job_id"]
    told = in_terminal(shop, "show", job)
    # A hash of 64 figures is wider than the terminal, which breaks it: so it can be copied in one piece.
    assert all(len(line) <= 60 or len(line.split()) == 1 for line in told)
    assert any("[bold]:smile: \\u202eodd" in line for line in told)
    assert any("\\x1b[31m" in line for line in told)
    assert not any("\x1b" in line for line in told)
    piped = shop.antrean("show", job).out
    assert f"                {message}\\x1b[31m\n" in piped, "whoever greps finds it in one line"


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("command", ["run", "jobs", "up", "usage", "flower", "simulate"])
def test_the_help_cuts_no_name_of_a_setting_or_a_value(shop: Shop, command: str) -> None:
    told = in_terminal(shop, command, "--help")
    assert all(len(line) <= 60 for line in told)
    assert not any("…" in line and "│" in line for line in told)
    assert not any(line.count("<") > line.count(">") and "|" in line for line in told), "a list in brackets"


def test_a_held_job_says_so_and_what_to_do(shop: Shop) -> None:
    batch = submit(shop, 2)
    assert "held" not in shop.antrean("jobs").out
    change(shop.folder, HELD)
    listed = shop.antrean("jobs")
    assert listed.out.count("  queued, held\n") == 2
    assert "2 jobs held since their run was stopped: the same `antrean run` goes on" in listed.err
    jobs = shop.antrean("jobs", "--json").json["jobs"]
    assert [job["held"] for job in jobs] == [True, True]
    assert shop.antrean("batches", "--json").json["batches"][0]["held"]
    told = shop.antrean("show", jobs[0]["job_id"])
    assert "  state         queued, held\n" in told.out
    assert f"the same `antrean run` goes on, `antrean cancel {batch}` gives it up" in told.out
    assert shop.antrean("show", jobs[0]["job_id"], "--json").json["is_held"]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ("claims = 0, attempts = 0", "none yet"),
        (
            "claims = 3, attempts = 1, max_attempts = 6",
            "3 made; 1 of them counts towards the 6 after which it fails",
        ),
        (
            "claims = 2, attempts = 0",
            "2 made; none of them count towards ANTREAN_MAX_ATTEMPTS after which it fails",
        ),
        ("claims = 4, attempts = 4, state = 'failed', generation = 3", "4 made; queued again 2 times"),
    ],
)
def test_attempts_are_told_in_plain_words(shop: Shop, facts: str, said: str) -> None:
    submit(shop, 1)
    change(shop.folder, f"UPDATE jobs SET {facts}")
    job = shop.antrean("jobs", "--json").json["jobs"][0]
    assert job["state"] in tuple(JobState)
    assert f"  attempts      {said}\n" in shop.antrean("show", job["job_id"]).out
