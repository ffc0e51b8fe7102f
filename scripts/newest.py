"""The fast tests against the newest releases that the pins of pyproject.toml exclude: `newest.py ROOT`.

A failure shows what a new release would break. It does not show that this version is broken.
Exit codes: 0 if the tests pass, or if there was nothing to try; 1 if they fail or do not end in time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

INSTALL_WITHIN_S = 300
TESTS_WITHIN_S = 480
SHOWN_LINES = 15
_UPPER_BOUND = re.compile(r"\s*,?\s*(<=?|~=|==)\s*[\w.*]+")


def main() -> int:
    root = Path(sys.argv[1])
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    # A short name, because paths of sockets in it are limited.
    folder = Path(tempfile.mkdtemp(prefix="ann"))
    try:
        return try_newest(root, folder, wanted)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def try_newest(root: Path, folder: Path, wanted: list[str]) -> int:
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-I", "-m", "venv", str(folder / "venv")], check=True)
    pip = [str(python), "-I", "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    known = next(without_upper_bound(one) for one in wanted if one.startswith("celery"))
    if not run([*pip, "download", "--no-deps", "--dest", str(folder), known], folder, shows=False):
        say("no package index that can be reached has what is installed now: not run")
        return 0
    if not run([*pip, "install", *map(without_upper_bound, wanted)], folder):
        say("the newest releases cannot be installed together: see above")
        return 1
    beyond = find_beyond(python, wanted)
    if not beyond:
        say("the index has no release that the pins exclude: nothing to try")
        return 0
    say(f"trying {', '.join(beyond)}")
    tests = [str(python), "-m", "pytest", "-q", "-n", "3", "--dist", "worksteal", "-m", "not measures"]
    env = {**os.environ, "PYTHONPATH": str(root)}
    try:
        done = subprocess.run(
            [*tests, "tests/unit", "tests/contract"], cwd=root, env=env, check=False, timeout=TESTS_WITHIN_S
        )
    except subprocess.TimeoutExpired:
        say(f"the tests did not end within {TESTS_WITHIN_S // 60} minutes")
        return 1
    say(
        "passed: the pins may be raised"
        if done.returncode == 0
        else "failed: see docs/couplings.md for what to mend"
    )
    return 0 if done.returncode == 0 else 1


def without_upper_bound(requirement: str) -> str:
    """The requirement without its upper bounds: `celery>=5.7` for `celery>=5.7,<5.8`. Its marker stays."""
    bounds, semicolon, marker = requirement.partition(";")
    return _UPPER_BOUND.sub("", bounds).strip() + (f" ;{marker}" if semicolon else "")


def find_beyond(python: Path, wanted: list[str]) -> list[str]:
    """The installed packages that their pins exclude, as `name version (pin)`, in the order of `wanted`."""
    script = (
        "import sys\nfrom importlib.metadata import version\nfrom packaging.requirements import Requirement\n"
        "for one in map(Requirement, sys.argv[1:]):\n"
        "    if one.marker is None or one.marker.evaluate():\n"
        "        found = version(one.name)\n"
        "        if found not in one.specifier:\n"
        "            print(f'{one.name} {found} ({one.specifier})')\n"
    )
    done = subprocess.run([python, "-I", "-c", script, *wanted], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def run(command: list[str], folder: Path, *, shows: bool = True) -> bool:
    """Whether the command succeeded in time. If not, the end of its output is printed."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            check=False,
            timeout=INSTALL_WITHIN_S,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        say(f"{' '.join(command[2:4])} did not end within {INSTALL_WITHIN_S // 60} minutes")
        return False
    if done.returncode != 0 and shows:
        sys.stderr.write("\n".join([*done.stdout.strip().splitlines()[-SHOWN_LINES:], ""]))
    return done.returncode == 0


def say(sentence: str) -> None:
    sys.stderr.write(f"newest: {sentence}\n")


if __name__ == "__main__":
    raise SystemExit(main())
