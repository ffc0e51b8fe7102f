"""A command imports what it needs, and no command is forgotten over that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import worker.cli
from worker.cli.lazy import HOMES, load_commands


@pytest.mark.parametrize("home", sorted(set(HOMES.values())))
def test_the_list_names_what_each_module_registers(home: str) -> None:
    assert set(load_commands(home)) == {name for name, module in HOMES.items() if module == home}


def test_every_module_with_commands_is_listed() -> None:
    folder = Path(next(iter(worker.cli.__path__)))
    with_commands = {one.stem for one in folder.glob("*.py") if "def register(" in one.read_text()}
    assert with_commands == set(HOMES.values())


@pytest.mark.parametrize(
    ("argument", "needless"),
    [("--version", "sqlalchemy"), ("bogus", "sqlalchemy"), ("status", "worker.sources.prompt")],
)
def test_a_command_imports_only_its_own_part(argument: str, needless: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "worker.cli", argument],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path), "ANTREAN_HOME": str(tmp_path), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "worker.cli.main" in imported
    assert needless not in imported
