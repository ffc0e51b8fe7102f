"""Where nobody reads what a command prints: one sentence where it helps, the shell's own code where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.test_run import write_documents
from tests.support.processes import Shop, SimulatorProcess, environment

pytestmark = pytest.mark.real_interpreter

COMMAND = [sys.executable, "-P", "-m", "worker.cli"]
USAGE, CLOSED_PIPE = 2, 141
LOOKS = [["status"], ["status", "--json"], ["usage"], ["usage", "--csv"], ["batches", "--json"], ["--help"]]
# One that prints lines, one that writes from a stream, and the help; then the rest.
ORDER = sorted(range(len(LOOKS) + 1), key=lambda number: number not in (0, 5, 6))


@pytest.fixture(scope="module")
def folder_with_results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder whose ledger holds a batch of 40 results; and the batch."""
    folder = tmp_path_factory.mktemp("an")
    simulator = SimulatorProcess("--latency", "0")
    try:
        shop = Shop(folder, {"home": folder / ".antrean", "base_url": simulator.url, "api_key": "k"})
        write_documents(folder, 40)
        done = shop.antrean("run", "documents", "-p", "prompt.md", "--json")
        assert done.code == 0, done.err
        return folder, done.json["batch_id"]
    finally:
        simulator.close()


def in_a_shell(folder: Path, arguments: list[str], redirection: str) -> tuple[int, str]:
    """The exit code of the command, with its streams where a shell puts them, and what it says on standard error."""
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {redirection}', "sh", *COMMAND, *arguments],
        cwd=folder,
        env=environment({"home": folder / ".antrean", "base_url": "http://127.0.0.1:1"}),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.decode()


def commands(batch: str) -> list[list[str]]:
    return [*LOOKS, ["results", batch]]


@pytest.mark.parametrize("number", ORDER)
@pytest.mark.default_cases(3)
def test_a_full_disk_behind_standard_output_is_called_one(
    folder_with_results: tuple[Path, str], number: int
) -> None:
    folder, batch = folder_with_results
    code, said = in_a_shell(folder, commands(batch)[number], "> /dev/full")
    assert code == USAGE
    assert said.count("antrean: standard output cannot be written (No space left on device)") == 1
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", ORDER)
@pytest.mark.default_cases(3)
def test_a_reader_that_has_left_ends_a_command_in_silence(
    folder_with_results: tuple[Path, str], number: int
) -> None:
    folder, batch = folder_with_results
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, *commands(batch)[number]],
        cwd=folder,
        env=environment({"home": folder / ".antrean", "base_url": "http://127.0.0.1:1"}),
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, b"")


def test_a_closed_standard_output_is_said_and_no_file_takes_its_place(
    folder_with_results: tuple[Path, str],
) -> None:
    folder, batch = folder_with_results
    code, said = in_a_shell(folder, ["results", batch], ">&-")
    assert (code, said.count("standard output cannot be written (Bad file descriptor)")) == (USAGE, 1)
    assert in_a_shell(folder, ["results", batch, "-o", "out.jsonl"], "<&- >&- 2>&-") == (0, "")
    assert (folder / "out.jsonl").read_text().count("\n") == 40


@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-"])
def test_a_remark_that_cannot_be_read_ends_nothing(
    folder_with_results: tuple[Path, str], redirection: str
) -> None:
    folder, _ = folder_with_results
    assert in_a_shell(folder, ["status"], f"{redirection} > status.txt") == (0, "")
    assert "40 succeeded" in (folder / "status.txt").read_text()
    assert in_a_shell(folder, ["results", "batch_x"], redirection) == (USAGE, "")


def test_json_is_utf_8_in_any_locale(folder_with_results: tuple[Path, str]) -> None:
    folder, batch = folder_with_results
    env = environment({"home": folder / ".antrean", "base_url": "http://127.0.0.1:1"})
    done = subprocess.run(
        [*COMMAND, "status", batch, "--json"],
        cwd=folder,
        env={**env, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert b'"succeeded": 40' in done.stdout
