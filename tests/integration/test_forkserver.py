"""A forked process is what a new interpreter is, and none outlives the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.interpreters import ROOT, Interpreters
from tests.support.processes import environment, ignoring, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")

_BIRTH = "tests.support.birth"
_HOLDER = """
import os, sys
from pathlib import Path
from tests.support.interpreters import ROOT, Interpreters
from tests.support.processes import environment
makes = Interpreters(modules=("api_client.simulator",))
makes.may_fork = True
one = makes.begin(["api_client.simulator", "--port", "0"], cwd=ROOT, env=environment({}), stdout=1, stderr=2)
print(makes.server_pid, one.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def forked() -> Iterator[Interpreters]:
    makes = Interpreters(modules=(_BIRTH, "api_client.simulator"))
    makes.may_fork = True
    yield makes
    makes.close()


@pytest.fixture
def new() -> Interpreters:
    return Interpreters()


@pytest.mark.parametrize("how", ["", "exit functions", "sentence", "large", "error", "interrupt", "closed"])
def test_a_forked_process_begins_and_ends_as_a_new_interpreter(
    forked: Interpreters, new: Interpreters, tmp_path: Path, how: str
) -> None:
    env = environment({"home": tmp_path, "model": "m\udcff"})

    def run(makes: Interpreters) -> tuple[int, object, list[str], str]:
        code, out, err = makes.run([_BIRTH, how, "--x", "ü"], cwd=tmp_path, env=env, timeout_s=30)
        first, *rest = out.decode().splitlines()
        return code, json.loads(first), rest, err.decode().rpartition("\n    ")[2]

    assert run(forked) == run(new)
    assert forked.server_pid is not None
    assert new.server_pid is None


def test_what_it_is_told_of_a_session_holds(forked: Interpreters, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        number = out.fileno()
        options = {"cwd": tmp_path, "env": environment({}), "stdout": number, "stderr": number}
        process = forked.begin([_BIRTH], start_new_session=True, **options)
        assert process.wait(20) == 0
    assert json.loads((tmp_path / "out").read_text())["is session leader"] is True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_a_new_interpreter(
    forked: Interpreters, new: Interpreters, tmp_path: Path, number: signal.Signals
) -> None:
    codes = []
    for makes in (forked, new):
        log = tmp_path / f"out{len(codes)}"
        with log.open("wb") as out:
            streams = {"stdout": out.fileno(), "stderr": out.fileno()}
            arguments = ["api_client.simulator", "--port", "0"]
            process = makes.begin(arguments, cwd=ROOT, env=environment({}), **streams)
        wait_until(lambda log=log: "http" in log.read_text(), within_s=20, what="it serves")
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(number)
        codes.append(process.wait(20))
        process.kill()  # does nothing: it has ended
        assert process.poll() == codes[-1]
    assert codes[0] == codes[1]


def test_whatever_else_an_interpreter_may_read_as_it_begins_makes_it_a_new_one(
    forked: Interpreters, tmp_path: Path
) -> None:
    def is_forked(**more: str) -> bool:
        env = {**environment({"model": "m"}), **more}
        with (tmp_path / "out").open("wb") as out:
            streams = {"stdout": out.fileno(), "stderr": out.fileno()}
            process = forked.begin([_BIRTH], cwd=tmp_path, env=env, **streams)
        assert process.wait(20) == 0
        return not isinstance(process, subprocess.Popen)

    assert is_forked()
    assert not is_forked(LC_ALL="C")
    assert not is_forked(PYTHONPATH=f"{tmp_path}:{ROOT}")
    with ignoring(signal.SIGHUP):
        assert not is_forked()
    before = os.umask(0o027)
    try:
        assert not is_forked()
    finally:
        os.umask(before)
    assert is_forked()


def test_the_server_and_its_processes_end_with_the_process_that_has_it() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", _HOLDER], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder.stdin, holder.stdout:
        line = next(line for line in holder.stdout if b"http" not in line)
        server, simulator = map(psutil.Process, map(int, line.split()))
        assert simulator.ppid() == server.pid
        holder.kill()
        holder.wait(10)
        wait_until(lambda: not is_running(server), within_s=10, what="the server is gone")
        wait_until(lambda: not is_running(simulator), within_s=10, what="its process is gone")


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
