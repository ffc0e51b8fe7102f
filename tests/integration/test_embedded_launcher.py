"""The scripts on a checkout that has no virtual environment yet. Its lock files are empty: no network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CLI = "import os, sys; print(sys.argv[1:], os.getcwd())\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "check out"  # with a space
    shutil.copytree(PROJECT / "scripts", root / "scripts")
    (root / "worker" / "cli").mkdir(parents=True)
    (root / "worker" / "__init__.py").touch()
    (root / "worker" / "cli" / "__init__.py").touch()
    (root / "worker" / "cli" / "__main__.py").write_text(CLI)
    for name in ("requirements.lock", "requirements-dev.lock"):
        (root / name).write_text("# nothing\n")
    return root


def start(script: Path, *arguments: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANTREAN_")}
    return subprocess.Popen(
        [str(script), *arguments],
        cwd=cwd,
        env={**inherited, "ANTREAN_PYTHON": sys.executable, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(script: Path, *arguments: str, cwd: Path, **env: str) -> tuple[int, str, str]:
    process = start(script, *arguments, cwd=cwd, **env)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def test_two_first_commands_share_one_setup_and_keep_their_folder(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("raise SystemExit('shadowed')")
    link = tmp_path / "antrean"
    link.symlink_to(checkout / "scripts" / "antrean")
    commands = [start(link, "a b", "c", cwd=tmp_path) for _ in range(2)]
    answers = [command.communicate(timeout=120) for command in commands]
    assert [output for output, _ in answers] == [f"['a b', 'c'] {tmp_path}\n"] * 2
    assert sorted("setting up" in errors for _, errors in answers) == [False, True]

    assert run(link, cwd=tmp_path) == (0, f"[] {tmp_path}\n", "")
    # The modules are found from any folder, as `celery -A worker` needs it.
    where = [str(checkout / ".venv" / "bin" / "python"), "-I", "-c", "import worker; print(worker.__file__)"]
    found = subprocess.run(where, cwd="/", stdout=subprocess.PIPE, text=True, check=True)
    assert found.stdout.strip() == str(checkout / "worker" / "__init__.py")

    (checkout / "requirements.lock").write_text("# nothing, but newer\n")
    assert "setting up" in run(link, cwd=tmp_path)[2]
    assert "setting up" not in run(link, cwd=tmp_path)[2]


def test_a_setup_that_was_interrupted_does_not_count(checkout: Path, tmp_path: Path) -> None:
    antrean = checkout / "scripts" / "antrean"
    command = start(antrean, cwd=tmp_path)
    assert command.stderr is not None
    assert "setting up" in command.stderr.readline()
    os.killpg(command.pid, signal.SIGINT)
    command.communicate()
    assert command.returncode != 0
    code, _, errors = run(antrean, cwd=tmp_path)
    assert (code, "setting up" in errors) == (0, True)


def test_packages_that_cannot_be_fetched_end_with_a_sentence(checkout: Path, tmp_path: Path) -> None:
    digest = "0" * 64
    (checkout / "requirements.lock").write_text(f"no-such-package==1.0 --hash=sha256:{digest}\n")
    code, output, errors = run(checkout / "scripts" / "antrean", cwd=tmp_path, PIP_NO_INDEX="1")
    assert (code, output) == (4, "")
    assert "no-such-package" in errors
    assert "could not be installed" in errors.splitlines()[-1]


def test_a_machine_without_a_recent_python_is_told_so(checkout: Path, tmp_path: Path) -> None:
    shim = tmp_path / "python3"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o700)
    antrean = checkout / "scripts" / "antrean"
    code, _, errors = run(antrean, cwd=tmp_path, ANTREAN_PYTHON=str(shim))
    assert (code, errors.count("\n")) == (3, 1)
    assert "Python 3.11" in errors


def test_a_folder_that_is_no_environment_is_left_alone(checkout: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "letter").touch()
    code, _, errors = run(checkout / "scripts" / "antrean", cwd=tmp_path, ANTREAN_VENV=str(precious))
    assert (code, "ANTREAN_VENV" in errors) == (3, True)
    assert [entry.name for entry in precious.iterdir()] == ["letter"]
