"""The worker and the simulator as services of the embedded stack: real processes in their place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.processes import is_gone, wait_until
from worker.errors import AntreanError, Unreachable
from worker.stack.attachment import Stack

PROJECT = Path(__file__).resolve().parents[2]
SECRET = "sk-do-not-tell"

# Stand-ins. The worker says how it was ended; `stubborn` does not end at SIGTERM.
WORKER = """
import os, signal, sys, time
def end(number, frame):
    print(f"ended by {number}", flush=True)
    if number == signal.SIGQUIT or sys.argv[1] != "stubborn":
        raise SystemExit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGQUIT, end)
print("ready", os.environ.get("ANTREAN_MODEL"), os.getcwd(), flush=True)
while True:
    signal.pause()
"""
SIMULATOR = """
import signal
print("warming up")
print("listening on http://127.0.0.1:4711 with faults", flush=True)
signal.pause()
"""
# A command that leaves at the first Ctrl-C and hurries at the second.
LEAVER = """
import signal, sys
from pathlib import Path
from worker.stack.attachment import Stack
stack = Stack.attach(Path(sys.argv[1]))
stack.ensure_worker(sys.argv[2:], {}, grace_s=600)
try:
    signal.pause()
except KeyboardInterrupt:
    try:
        stack.detach()
    except KeyboardInterrupt:
        stack.hurry()
        print(stack.detach())
"""
# Ends its Child's parent by -9; the child must follow.
GUARDED = """
import asyncio, os, sys, signal
from pathlib import Path
from worker.stack.child import Child
async def main():
    child = Child(["sleep", "600"], env={"PATH": os.environ["PATH"]}, cwd=Path("/"),
                  log=Path(os.devnull), is_guarded=True)
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def worker_argv(manner: str = "obedient") -> list[str]:
    return [sys.executable, "-c", WORKER, manner]


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(f"/tmp/antrean-test-{os.getpid()}-{time.monotonic_ns()}")
    folder.mkdir(mode=0o700)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def stack(home: Path) -> Iterator[Stack]:
    with Stack.attach(home) as attached:
        yield attached


def _pid(stack: Stack, service: str) -> int | None:
    pid: int | None = stack.status()["services"][service]["pid"]
    return pid


def _log(home: Path, service: str) -> str:
    path = home / "logs" / f"{service}.log"
    return path.read_text() if path.exists() else ""


def _next_event(stack: Stack) -> dict[str, Any]:
    events: list[dict[str, Any]] = []

    def has_one() -> bool:
        events.extend(stack.poll_events())
        return bool(events)

    wait_until(has_one)
    return events[0]


def test_a_worker_is_shared_and_another_configuration_is_told_apart(home: Path, stack: Stack) -> None:
    assert stack.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "a"})
    pid = _pid(stack, "worker")
    with Stack.attach(home) as second:
        assert second.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "a"})
        assert not second.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "b"})
        assert _pid(second, "worker") == pid


def test_other_settings_get_a_worker_of_their_own_with_a_log_of_its_own(home: Path, stack: Stack) -> None:
    stack.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "a"})
    with Stack.attach(home) as second, Stack.attach(home) as third:
        assert not second.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "b"})
        third.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "a"})
        services = (stack.worker_service, second.worker_service, third.worker_service)
        assert services == ("worker", "worker-2", "worker")
        wait_until(lambda: "ready a" in _log(home, "worker") and "ready b" in _log(home, "worker-2"))
        assert "ready b" not in _log(home, "worker")
        assert len({_pid(stack, name) for name in services}) == 2


def test_a_worker_stops_with_the_last_command_that_uses_it(home: Path, stack: Stack) -> None:
    stack.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "a"})
    second, third = Stack.attach(home), Stack.attach(home)
    for one in (second, third):
        one.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "b"})
    pids = _pid(stack, "worker"), _pid(stack, "worker-2")
    wait_until(lambda: "ready" in _log(home, "worker-2"))
    assert second.detach() is False
    assert _pid(stack, "worker-2") == pids[1], "the third uses it"
    assert third.detach() is False
    assert pids[1] is not None and is_gone(pids[1]), "leaving waits for its own worker"
    assert set(stack.status()["services"]) == {"worker"}
    assert _pid(stack, "worker") == pids[0]


def test_a_killed_command_takes_its_own_worker_along_and_no_other(home: Path, stack: Stack) -> None:
    stack.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "a"})
    second = Stack.attach(home)
    second.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "b"})
    second._connection.close()  # as the kernel does for one that is killed
    wait_until(lambda: set(stack.status()["services"]) == {"worker"})
    assert _pid(stack, "worker") is not None


def test_who_asks_for_a_worker_that_is_just_stopping_gets_a_new_one(home: Path, stack: Stack) -> None:
    second, third = Stack.attach(home), Stack.attach(home)
    second.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "b"})
    pid = _pid(second, "worker")
    wait_until(lambda: "ready b" in _log(home, "worker"))
    second.detach(wait=False)
    third.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "b"})
    assert _pid(third, third.worker_service) not in (None, pid)
    third.detach()


def test_the_death_of_a_worker_is_told_to_those_who_use_it(home: Path, stack: Stack) -> None:
    stack.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "a"})
    with Stack.attach(home) as second:
        second.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "b"})
        pid = _pid(second, "worker-2")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert _next_event(second) == {
            "event": "service_died",
            "service": "worker-2",
            "status": -9,
            "reason": "signal 9, SIGKILL",
            "is_restarted": True,
        }
        assert stack.poll_events() == []


def test_a_hurried_command_cuts_its_own_workers_grace_and_leaves_the_others(home: Path, stack: Stack) -> None:
    stack.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "a"})
    second = Stack.attach(home)
    second.ensure_worker(worker_argv("stubborn"), {"ANTREAN_MODEL": "b"}, grace_s=600)
    wait_until(lambda: "ready" in _log(home, "worker-2"))
    second.hurry()
    assert second.detach() is False
    assert f"ended by {signal.SIGQUIT.value}" in _log(home, "worker-2")
    assert "ended" not in _log(home, "worker")


def test_a_service_gets_its_settings_from_its_command_alone(
    home: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTREAN_MODEL", "from-the-shell")
    stack.ensure_worker(worker_argv(), {})
    wait_until(lambda: f"ready None {home}" in _log(home, "worker"))


def test_a_worker_that_dies_is_announced_and_started_again(stack: Stack) -> None:
    stack.ensure_worker(worker_argv(), {})
    first = _pid(stack, "worker")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert _next_event(stack) == {
        "event": "service_died",
        "service": "worker",
        "status": -9,
        "reason": "signal 9, SIGKILL",
        "is_restarted": True,
    }
    wait_until(lambda: _pid(stack, "worker") not in (None, first))


def test_a_worker_that_keeps_dying_is_started_again_more_and_more_slowly(home: Path, stack: Stack) -> None:
    born = home / "born"
    script = "import sys, time; print(time.monotonic(), file=open(sys.argv[1], 'a')); raise SystemExit(7)"
    stack.ensure_worker([sys.executable, "-c", script, str(born)], {})
    wait_until(lambda: born.exists() and len(born.read_text().splitlines()) >= 3)
    first, second, third = map(float, born.read_text().splitlines()[:3])
    assert second - first >= 0.5
    assert third - second >= 1.0
    assert _next_event(stack)["status"] == 7


def test_a_dead_worker_is_replaced_at_once_by_one_with_other_settings(home: Path, stack: Stack) -> None:
    stack.ensure_worker([sys.executable, "-c", "raise SystemExit(3)"], {"ANTREAN_MODEL": "broken"})
    _next_event(stack)
    wait_until(lambda: _pid(stack, "worker") is None)
    assert stack.ensure_worker(worker_argv(), {"ANTREAN_MODEL": "mended"})
    wait_until(lambda: "ready mended" in _log(home, "worker"))


def test_the_worker_ends_before_the_broker_it_still_needs(home: Path) -> None:
    stack = Stack.attach(home)
    stack.ensure_broker()
    stack.ensure_worker(worker_argv(), {})
    wait_until(lambda: "ready" in _log(home, "worker"))
    assert stack.detach()
    stops = [line for line in _log(home, "keeper").splitlines() if "service.stopped" in line]
    assert ["service=worker status=0" in stops[0], "service=broker status=0" in stops[1]] == [True, True]
    assert f"ended by {signal.SIGTERM.value}" in _log(home, "worker")


def test_a_worker_that_outstays_its_grace_is_killed(home: Path) -> None:
    stack = Stack.attach(home)
    # Its limit is the grace and five seconds; a negative grace makes it short here.
    stack.ensure_worker(worker_argv("stubborn"), {}, grace_s=-4.8)
    wait_until(lambda: "ready" in _log(home, "worker"))
    pid = _pid(stack, "worker")
    assert stack.detach()
    assert pid is not None
    assert is_gone(pid)
    assert "service=worker status=-9" in _log(home, "keeper")


def test_a_second_interrupt_in_the_middle_of_leaving_cuts_the_grace_short(home: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", LEAVER, str(home), *worker_argv("stubborn")],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: "ready" in _log(home, "worker"))
    command.send_signal(signal.SIGINT)
    wait_until(lambda: f"ended by {signal.SIGTERM.value}" in _log(home, "worker"))
    command.send_signal(signal.SIGINT)
    assert command.communicate(timeout=10)[0] == "True\n"
    assert f"ended by {signal.SIGQUIT.value}" in _log(home, "worker")


def test_a_hurried_leave_is_a_cold_shutdown(home: Path) -> None:
    stack = Stack.attach(home)
    stack.ensure_worker(worker_argv("stubborn"), {}, grace_s=600)
    wait_until(lambda: "ready" in _log(home, "worker"))
    stack.hurry()
    assert stack.detach() is True
    assert f"ended by {signal.SIGQUIT.value}" in _log(home, "worker")


def test_one_commands_hurry_leaves_the_others_worker_alone(home: Path, stack: Stack) -> None:
    stack.ensure_worker(worker_argv(), {})
    pid = _pid(stack, "worker")
    with Stack.attach(home) as other:
        other.hurry()
    assert _pid(stack, "worker") == pid


def test_a_worker_that_starts_processes_of_its_own_leaves_none_behind(home: Path, stack: Stack) -> None:
    script = (
        "import subprocess, signal; print(subprocess.Popen(['sleep', '600']).pid, flush=True); signal.pause()"
    )
    stack.ensure_worker([sys.executable, "-c", script], {})
    wait_until(lambda: _log(home, "worker").endswith("\n"))
    grandchild = int(_log(home, "worker"))
    stack.detach()
    wait_until(lambda: is_gone(grandchild))


def test_a_killed_keeper_ends_the_worker_and_the_simulator(home: Path) -> None:
    stack = Stack.attach(home)
    stack.ensure_worker(worker_argv(), {})
    stack.ensure_simulator([sys.executable, "-c", SIMULATOR], {})
    pids = [_pid(stack, "worker"), _pid(stack, "simulator")]
    wait_until(lambda: "ready" in _log(home, "worker"))
    os.kill(stack.status()["pid"], signal.SIGKILL)
    wait_until(lambda: all(pid is not None and is_gone(pid) for pid in pids))
    stack.detach()


def test_where_the_kernel_sends_no_signal_a_guard_ends_the_child_of_a_killed_keeper() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", GUARDED],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    )
    wait_until(lambda: is_gone(int(answer.stdout)))


def test_the_simulators_address_is_known_once_it_listens(home: Path, stack: Stack) -> None:
    url = stack.ensure_simulator([sys.executable, "-c", SIMULATOR], {})
    assert url == "http://127.0.0.1:4711"
    with Stack.attach(home) as second:
        assert second.ensure_simulator([sys.executable, "-c", SIMULATOR], {}) == url
    assert "warming up" in _log(home, "simulator")


def test_a_simulator_that_fails_is_told_with_its_last_words(stack: Stack) -> None:
    with pytest.raises(Unreachable, match="port is taken"):
        stack.ensure_simulator([sys.executable, "-c", "raise SystemExit('port is taken')"], {})
    assert stack.ensure_simulator([sys.executable, "-c", SIMULATOR], {})


def test_a_program_that_cannot_be_started_is_told_by_name(stack: Stack) -> None:
    with pytest.raises(AntreanError, match="no-such-program"):
        stack.ensure_worker(["/no-such-program"], {})


def test_no_secret_is_in_an_argument_or_a_log(home: Path, stack: Stack) -> None:
    env = {"ANTREAN_API_KEY": SECRET}
    stack.ensure_broker()
    stack.ensure_worker(worker_argv(), env)
    stack.ensure_simulator([sys.executable, "-c", SIMULATOR], env)
    stack.ensure_worker(worker_argv(), {"ANTREAN_API_KEY": SECRET + "2"})
    keeper = psutil.Process(stack.status()["pid"])
    arguments = [process.cmdline() for process in (keeper, *keeper.children(recursive=True))]
    assert len(arguments) == 4
    assert SECRET not in str(arguments)
    assert SECRET not in str(keeper.environ())
    for log in (home / "logs").iterdir():
        assert SECRET not in log.read_text()
        assert log.name in ("keeper.log", "valkey.log", "worker.log", "worker-2.log", "simulator.log")


def test_a_command_that_is_killed_while_a_service_starts_takes_it_along(home: Path) -> None:
    silent = "import signal, os; open('silent', 'w').write(str(os.getpid())); signal.pause()"
    script = (
        "import sys; from pathlib import Path; from worker.stack.attachment import Stack\n"
        f"Stack.attach(Path(sys.argv[1])).ensure_simulator([sys.executable, '-c', {silent!r}], {{}})"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", script, str(home)], env={**os.environ, "PYTHONPATH": str(PROJECT)}
    )
    written = home / "silent"
    wait_until(lambda: written.exists() and written.read_text() != "")
    command.kill()
    command.wait()
    wait_until(lambda: is_gone(int(written.read_text())))
