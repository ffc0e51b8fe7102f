"""A command imports what it needs, and no command is forgotten over that."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import worker.cli
from worker.cli.lazy import GROUPS, HOMES, load_commands


@pytest.mark.parametrize("home", sorted(set(HOMES.values())))
def test_the_list_names_what_each_module_registers(home: str) -> None:
    assert set(load_commands(home)) == {name for name, module in HOMES.items() if module == home}


def test_every_module_with_commands_is_listed() -> None:
    folder = Path(next(iter(worker.cli.__path__)))
    with_commands = {one.stem for one in folder.glob("*.py") if "def register(" in one.read_text()}
    assert with_commands == set(HOMES.values())


def test_the_help_lists_each_command_with_its_own_first_line() -> None:
    listed = {name: one for group in GROUPS.values() for name, one in group.items()}
    commands = {name: one for home in set(HOMES.values()) for name, one in load_commands(home).items()}
    assert {name: one.summary for name, one in listed.items()} == {
        name: (one.help or "").split("\n\n")[0] for name, one in commands.items()
    }


def test_the_help_groups_the_commands_and_names_no_type_of_a_flag(tmp_path: Path) -> None:
    told = run_cli(tmp_path, "--help").stdout
    titles = re.findall(r"^╭─ ([A-Z][a-z ]+) ─", told, re.MULTILINE)
    assert titles == ["Options", *GROUPS]
    for group in GROUPS.values():
        for name in group:
            assert re.search(rf"^│ {name} ", told, re.MULTILINE)
    for page in (told, *(run_cli(tmp_path, name, "--help").stdout for name in ("run", "status", "worker"))):
        assert "--help" in page
        assert "<bool>" not in page


def run_cli(folder: Path, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-m", "worker.cli", *arguments],
        cwd=folder,
        env={
            "PYTHONPATH": ":".join(sys.path),
            "PYTHONUTF8": "1",
            "ANTREAN_HOME": str(folder),
            "COLUMNS": "80",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


HEAVY = {"celery", "sqlalchemy", "alembic", "requests", "redis", "jinja2"}


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--version"], set()),
        (["--help"], set()),
        (["bogus"], set()),
        (["worker", "--help"], set()),
        (["flower", "--help"], set()),
        (["batches"], {"sqlalchemy", "alembic"}),  # alembic once: it makes the ledger
        (["status"], {"sqlalchemy", "redis"}),
    ],
    ids=lambda value: " ".join(sorted(value)) if isinstance(value, set) else " ".join(value),
)
def test_a_command_imports_only_what_it_needs(
    arguments: list[str], needed: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "ledger"  # the second command finds it made
    folder.mkdir(exist_ok=True)
    if arguments == ["status"]:
        run_cli(folder, "batches")
    done = run_cli(folder, *arguments, options=("-X", "importtime"))
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "worker.cli.main" in imported
    assert imported & HEAVY <= needed


def test_a_command_begins_with_the_collector_at_work_and_blind_for_what_is_loaded(tmp_path: Path) -> None:
    script = """
import gc, sys
sys.argv = ["antrean", "batches"]
import worker.cli.__main__ as door
import worker.cli.lazy as lazy
load = lazy.load_commands
def spied(home):
    found = load(home)
    found["batches"].callback = lambda **_: print(gc.isenabled(), gc.get_freeze_count() > 50_000)
    return found
lazy.load_commands = spied
door.start()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("True True\n", "")
