"""The embedded stack belongs to the commands that hold it: real processes, a real Valkey."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from tests.support.processes import is_gone, wait_until
from worker.errors import Unreachable
from worker.files.home import broker_socket, open_lock_file, runtime_folder, try_lock
from worker.stack.attachment import Stack, StackLost

PROJECT = Path(__file__).resolve().parents[2]

# A command that holds the stack: says its keeper's and its Valkey's pid, and leaves when stdin ends.
HOLDER = """
import sys
from pathlib import Path
from worker.stack.attachment import Stack
with Stack.attach(Path(sys.argv[1])) as stack:
    stack.ensure_broker()
    status = stack.status()
    print(status["pid"], status["services"]["broker"]["pid"], flush=True)
    sys.stdin.read()
"""


def is_locked(path: Path) -> bool:
    descriptor = open_lock_file(path)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def ping(home: Path) -> bool:
    client = redis.Redis(unix_socket_path=str(broker_socket(home)))
    try:
        return bool(client.ping())
    finally:
        client.close()


class Holder:
    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            text=True,
        )

    def pids(self) -> tuple[int, int]:
        assert self.process.stdout is not None
        keeper, broker = self.process.stdout.readline().split()
        return int(keeper), int(broker)

    def end(self) -> None:
        self.process.communicate(timeout=20)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    # Short, so that the sockets are in the home folder however deep pytest's own folder is.
    link = Path(f"/tmp/antrean-test-{os.getpid()}-{time.monotonic_ns()}")
    link.mkdir(mode=0o700)
    yield link
    subprocess.run(["rm", "-rf", str(link)], check=True)


def _broker_pid(stack: Stack) -> int:
    return int(stack.status()["services"]["broker"]["pid"])


def test_an_attached_command_finds_a_broker_that_answers(home: Path) -> None:
    with Stack.attach(home) as stack:
        assert stack.ensure_broker() == f"redis+socket://{home}/run/valkey.sock?virtual_host=0"
        assert ping(home)


def test_a_second_command_shares_the_broker_and_the_last_one_stops_it(home: Path) -> None:
    first, second = Stack.attach(home), Stack.attach(home)
    first.ensure_broker()
    second.ensure_broker()
    pids = [_broker_pid(first), int(first.status()["pid"])]
    assert _broker_pid(second) == pids[0]
    assert first.detach() is False
    assert ping(home)
    assert second.detach() is True
    assert is_gone(pids[0])
    wait_until(lambda: all(map(is_gone, pids)))
    assert list(runtime_folder(home).iterdir()) == []


def test_a_killed_command_leaves_as_surely_as_one_that_ends(home: Path) -> None:
    holder = Holder(home)
    pids = holder.pids()
    holder.kill()
    wait_until(lambda: all(map(is_gone, pids)))


def test_a_killed_keeper_takes_the_broker_with_it_and_the_next_command_starts_both(home: Path) -> None:
    stack = Stack.attach(home)
    stack.ensure_broker()
    keeper, broker = int(stack.status()["pid"]), _broker_pid(stack)
    os.kill(keeper, signal.SIGKILL)
    # At once, while the old broker may still be ending: two of them would share one append-only file.
    with Stack.attach(home) as successor:
        successor.ensure_broker()
        assert is_gone(broker)
        assert ping(home)
        with pytest.raises(StackLost):
            stack.status()
        with pytest.raises(StackLost):
            stack.poll_events()
    assert stack.detach() is True


def test_a_stopped_orphan_of_a_killed_keeper_is_waited_for(home: Path) -> None:
    stack = Stack.attach(home)
    stack.ensure_broker()
    keeper, broker = int(stack.status()["pid"]), _broker_pid(stack)
    os.kill(broker, signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    stack.detach()
    holder = Holder(home)
    wait_until(lambda: (home / "logs" / "keeper.log").read_text().count("keeper.started") == 2)
    os.kill(broker, signal.SIGCONT)
    assert is_gone(broker) or holder.pids()[1] != broker
    holder.end()


def test_two_commands_that_start_at_once_share_one_keeper(home: Path) -> None:
    holders = [Holder(home) for _ in range(4)]
    assert len({holder.pids() for holder in holders}) == 1
    for holder in holders:
        holder.end()
    with Stack.attach(home):
        assert (home / "logs" / "keeper.log").read_text().count("keeper.started") == 2


def test_a_command_that_comes_while_the_stack_stops_waits_and_starts_its_own(home: Path) -> None:
    first = Stack.attach(home)
    first.ensure_broker()
    keeper, broker = int(first.status()["pid"]), _broker_pid(first)
    os.kill(broker, signal.SIGSTOP)  # it cannot end before it is told to go on
    assert first.detach(wait=False) is True
    holder = Holder(home)
    wait_until(lambda: is_locked(home / "start.lock"))
    os.kill(broker, signal.SIGCONT)
    new_keeper, new_broker = holder.pids()
    assert new_keeper != keeper
    assert new_broker != broker
    assert is_gone(broker)
    holder.end()


def test_what_the_broker_holds_outlives_a_stop(home: Path) -> None:
    for expected in (1, 2):
        with Stack.attach(home) as stack:
            stack.ensure_broker()
            client = redis.Redis(unix_socket_path=str(broker_socket(home)))
            assert client.incr("visits") == expected
            client.close()


def test_a_broker_that_is_killed_comes_back_with_what_it_held(home: Path) -> None:
    with Stack.attach(home) as stack:
        stack.ensure_broker()
        client = redis.Redis(unix_socket_path=str(broker_socket(home)))
        client.set("key", "value")
        broker = _broker_pid(stack)
        os.kill(broker, signal.SIGKILL)
        wait_until(lambda: stack.status()["services"]["broker"]["restart_count"] == 1)
        stack.ensure_broker()
        assert _broker_pid(stack) != broker
        assert client.get("key") == b"value"
        client.close()
        assert stack.poll_events() == [
            {
                "event": "service_died",
                "service": "broker",
                "status": -signal.SIGKILL,
                "reason": "signal 9, SIGKILL",
                "is_restarted": True,
            }
        ]


def test_broken_broker_data_are_set_aside_because_the_ledger_holds_the_truth(home: Path) -> None:
    with Stack.attach(home) as stack:
        stack.ensure_broker()
    manifest = home / "valkey" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("not a manifest\n")
    with Stack.attach(home) as stack:
        stack.ensure_broker()
        assert ping(home)
    assert (home / "valkey.broken" / "appendonlydir" / manifest.name).read_text() == "not a manifest\n"
    assert "broker.data_set_aside" in (home / "logs" / "keeper.log").read_text()


def test_broken_data_beside_a_projects_own_files_are_told_and_left_as_they_are(home: Path) -> None:
    with Stack.attach(home) as stack:
        stack.ensure_broker()
    own = home / "valkey" / "of-the-project"
    own.write_text("Mine.")
    (home / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("not a manifest\n")
    with (
        Stack.attach(home) as stack,
        pytest.raises(Unreachable, match="the embedded Valkey ended with status 1"),
    ):
        stack.ensure_broker()
    assert own.read_text() == "Mine."
    assert not (home / "valkey.broken").exists()


def test_a_truncated_append_only_file_is_loaded_up_to_its_last_whole_write(home: Path) -> None:
    with Stack.attach(home) as stack:
        stack.ensure_broker()
        client = redis.Redis(unix_socket_path=str(broker_socket(home)))
        client.set("first", 1)
        client.set("second", 2)
        client.close()
    (log,) = (home / "valkey" / "appendonlydir").glob("*.incr.aof")
    os.truncate(log, log.stat().st_size - 3)
    with Stack.attach(home) as stack:
        stack.ensure_broker()
        client = redis.Redis(unix_socket_path=str(broker_socket(home)))
        assert client.mget("first", "second") == [b"1", None]
        client.close()


@pytest.mark.parametrize("name", ["h" * 120, "with space; and Ü"])
def test_a_home_whose_path_no_socket_can_carry_works_all_the_same(home: Path, name: str) -> None:
    odd_home = home / name
    with Stack.attach(odd_home) as stack:
        stack.ensure_broker()
        assert ping(odd_home)
    assert not runtime_folder(odd_home).exists()


def test_a_keeper_that_is_told_to_end_stops_the_broker_first(home: Path) -> None:
    stack = Stack.attach(home)
    stack.ensure_broker()
    broker = _broker_pid(stack)
    os.kill(int(stack.status()["pid"]), signal.SIGTERM)
    assert stack.detach() is True
    assert is_gone(broker)


@pytest.mark.full
def test_the_keepers_process_is_gone_when_the_last_command_has_left(home: Path) -> None:
    """A command that came at once met the one before ending: its process was still there, milliseconds long."""
    for _ in range(50):
        with Stack.attach(home) as one:
            keeper = psutil.Process(int(one.status()["pid"]))
            with Stack.attach(home) as other:
                pass
        assert not keeper.is_running() or keeper.status() == psutil.STATUS_ZOMBIE
        assert (one.fileno(), other.fileno()) == (-1, -1)


@pytest.mark.parametrize("is_told", [True, False], ids=["told to end", "left"])
def test_an_orderly_end_logs_nothing_alarming(home: Path, is_told: bool) -> None:
    """Python 3.11 logs a traceback for each handler of a server that is cancelled at the loop's end."""
    first = Stack.attach(home)
    stacks = [first, *(Stack.attach(home) for _ in range(3))]
    first.ensure_broker()
    if is_told:
        os.kill(int(first.status()["pid"]), signal.SIGTERM)
    for stack in reversed(stacks):
        stack.detach()
    log = (home / "logs" / "keeper.log").read_text()
    assert "keeper.stopped" in log
    assert not any(
        word in log for word in ("Traceback", "Cancelled", "ERROR", "WARNING", "never retrieved")
    ), log
