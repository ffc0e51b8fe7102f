"""Makes the virtual environment of a checkout: `setup_venv.py ROOT VENV LOCKFILE`, run by setup.sh.

Uses the standard library only. It may be interrupted, and two may run at the same time: a lock admits one at a time,
and only a finished setup leaves its stamps (a copy of each lock file that it satisfies, and `antrean.root`).
Exit codes: 3 if this machine cannot make one, 4 if the packages cannot be fetched, 130 after Ctrl-C.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

RUNTIME, DEVELOPMENT = "requirements.lock", "requirements-dev.lock"
ROOT_STAMP = "antrean.root"
MADE = "antrean.made"  # this script made the folder, and may remove an unfinished one
LOCK = "antrean.lock"
IS_RECENT = "import sys; sys.exit(sys.version_info < (3, 11))"
SHOWN_LINES = 6

# The target of links: after a system upgrade it is missing, and that is noticed. A link could mean another Python then.
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
# These variables could install the packages elsewhere, or show packages that the environment does not have.
_MISLEADING = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")


def main() -> int:
    root, venv, lock_file = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    os.umask(os.umask(0o022) | 0o022)  # others must not be able to change code that runs as this user
    try:
        venv.mkdir(parents=True, exist_ok=True)
        if any(venv.iterdir()) and not any((venv / name).exists() for name in ("pyvenv.cfg", LOCK)):
            fail(3, f"{venv} holds something else: set ANTREAN_VENV to a folder that is empty or missing")
        lock = os.open(venv / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        fail(3, f"{venv} cannot be written ({exc.strerror}): choose another folder with ANTREAN_VENV")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for another setup of {venv} …")
        fcntl.flock(lock, fcntl.LOCK_EX)
    if is_ready(root, venv, lock_file):
        return 0
    say(f"setting up {shown(venv, root)} (first use or new versions, about half a minute) …")
    begin(root, venv, lock)
    install(root, venv, lock_file, lock)
    finish(root, venv, lock_file)
    return 0


def is_ready(root: Path, venv: Path, lock_file: str) -> bool:
    return (
        os.access(venv / "bin" / "python", os.X_OK)
        and content(venv / lock_file) == content(root / lock_file)
        and content(venv / ROOT_STAMP).strip() == os.fsencode(root)
    )


def begin(root: Path, venv: Path, lock: int) -> None:
    """Prepares an environment without stamps: the existing one if it works, else a new one."""
    is_whole = content(venv / ROOT_STAMP).strip() == os.fsencode(root) and runs(venv / "bin" / "python")
    for stamp in (ROOT_STAMP, RUNTIME, DEVELOPMENT):
        (venv / stamp).unlink(missing_ok=True)
    if is_whole:
        return
    if not (venv / MADE).exists() and any(entry.name != LOCK for entry in venv.iterdir()):
        if not runs(venv / "bin" / "python", IS_RECENT):
            fail(3, f"{venv} is not of a Python 3.11 or later that runs: remove it, or set ANTREAN_VENV")
        return  # an environment that this script did not make: nothing in it is removed
    (venv / MADE).touch()
    for attempt in ways_to_make(venv):
        clear(venv)
        done = subprocess.run(attempt, check=False, env=environment(), capture_output=True, pass_fds=[lock])
        if done.returncode == 0:
            return
    fail(
        3,
        f"{PYTHON} cannot make a virtual environment: install its venv package "
        "(Debian and Ubuntu: apt install python3-venv), or name another Python with ANTREAN_PYTHON",
    )


def ways_to_make(venv: Path) -> list[list[str]]:
    """Commands that make an environment and that this machine can run, best first."""
    virtualenv, uv = shutil.which("virtualenv"), shutil.which("uv")
    ways: list[list[str]] = []
    if has_module("venv") and has_module("ensurepip"):
        ways.append([PYTHON, "-I", "-m", "venv", str(venv)])
    if has_module("venv") and (has_module("pip") or uv):  # Debian without python3-venv has no ensurepip
        ways.append([PYTHON, "-I", "-m", "venv", "--without-pip", str(venv)])
    if virtualenv:
        ways.append([virtualenv, "--quiet", "--python", PYTHON, str(venv)])
    if uv:
        ways.append([uv, "venv", "--quiet", "--allow-existing", "--python", PYTHON, str(venv)])
    return ways


def install(root: Path, venv: Path, lock_file: str, lock: int) -> None:
    python = str(venv / "bin" / "python")
    uv = shutil.which("uv")
    pip_options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-warn-script-location"]
    if runs(python, "import pip"):
        command = [python, "-I", "-m", "pip", "install", *pip_options]
    elif has_module("pip"):
        command = [PYTHON, "-I", "-m", "pip", "--python", python, "install", *pip_options]
    elif uv:
        command = [uv, "pip", "install", "--quiet", "--python", python]
    else:
        fail(3, f"{venv} has no pip: remove it, or set ANTREAN_VENV")
    command += ["--require-hashes", "--no-deps", "-r", str(root / lock_file)]
    # The child inherits the lock: if this process is killed, the next setup waits until the child has ended.
    done = subprocess.run(
        command,
        check=False,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[lock],
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        sys.stderr.write("\n".join([*done.stdout.strip().splitlines()[-SHOWN_LINES:], ""]))
        fail(
            4,
            f"the packages of {lock_file} could not be installed: see above, then run the command again",
        )


def finish(root: Path, venv: Path, lock_file: str) -> None:
    """Makes antrean's modules importable, then writes the stamps. They come last, as they say that all is done."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run(
        [venv / "bin" / "python", "-I", "-c", where], stdout=subprocess.PIPE, check=True, text=True
    )
    Path(packages.stdout.strip(), "antrean.pth").write_bytes(os.fsencode(root) + b"\n")
    command = venv / "bin" / "antrean"
    command.unlink(missing_ok=True)
    command.symlink_to(root / "scripts" / "antrean")
    # The development packages include the runtime ones.
    for stamp in {RUNTIME, lock_file}:
        shutil.copyfile(root / stamp, venv / stamp)
    (venv / ROOT_STAMP).write_bytes(os.fsencode(root) + b"\n")


def clear(venv: Path) -> None:
    for entry in venv.iterdir():
        if entry.name in (LOCK, MADE):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def environment() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
    return {**env, "PIP_ROOT_USER_ACTION": "ignore"}


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def runs(python: str | Path, statement: str = "pass") -> bool:
    try:
        return (
            subprocess.run([python, "-I", "-c", statement], check=False, capture_output=True).returncode == 0
        )
    except OSError:
        return False


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def shown(venv: Path, root: Path) -> Path:
    return venv.relative_to(root) if venv.is_relative_to(root) else venv


def say(sentence: str) -> None:
    sys.stderr.write(f"antrean: {sentence}\n")


def fail(code: int, sentence: str) -> NoReturn:
    say(sentence)
    raise SystemExit(code)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
