"""`antrean up`: the whole stack in the foreground, kept alive, stopped in order, and nothing left behind."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.processes import (
    Shop,
    SimulatorProcess,
    end,
    environment,
    free_port,
    processes_under,
    wait_until,
)

pytestmark = pytest.mark.real_interpreter

PREFIXED = re.compile(r"^(antrean|worker\d|flower ) +\| ")


class Up:
    """A running `antrean up`."""

    def __init__(self, shop: Shop, *options: str, **settings: object) -> None:
        self.shop = shop
        self.log = shop.folder / "up.log"
        self.process = shop.begin("worker.cli", "up", *options, log="up.log", **settings)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def says(self, words: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return any(line.startswith("antrean") and words in line for line in self.lines())

    def wait_for(self, words: str, *, within_s: float = 40.0) -> None:
        wait_until(lambda: self.says(words), within_s=within_s, what=f"up says {words!r}")

    def pid_of(self, words: str) -> int:
        for child in psutil.Process(self.process.pid).children():
            if words in " ".join(child.cmdline()):
                return child.pid
        raise AssertionError(f"no child of up runs {words}")


def submit(shop: Shop, count: int) -> str:
    lines = [
        json.dumps({"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": f"Tell me {i}."}]})
        for i in range(count)
    ]
    (shop.folder / "requests.jsonl").write_text("\n".join(lines))
    done = shop.antrean("submit", "requests.jsonl", "--json")
    assert done.code == 0, done.err
    return str(done.json["batch_id"])


def states(shop: Shop) -> dict[str, int]:
    counts = shop.antrean("status", "--json").json["jobs"]
    return {state: count for state, count in counts.items() if count}


def is_deserted(folder: Path) -> bool:
    return processes_under(folder) == []


def test_the_whole_stack_runs_until_it_is_told_to_stop(shop: Shop, simulator: SimulatorProcess) -> None:
    port = free_port()
    up = Up(shop, "--workers", "2", "--flower-port", str(port), "--health-every", "1")
    password = shop.folder / ".antrean" / "flower.password"
    up.wait_for(f"ready: 2 workers, Flower on http://127.0.0.1:{port} (user antrean, password in {password})")
    assert shop.antrean("health", "--url", f"http://127.0.0.1:{port}/healthcheck").code == 0

    submit(shop, 60)
    wait_until(lambda: states(shop) == {"succeeded": 60}, within_s=30, what="all jobs end")
    assert simulator.stats()["calls"] == 60
    up.wait_for("2 workers · 0 in flight · 0 queued · 0 failed · ")
    alarming = re.compile("warning|error|critical|traceback|not recommended|detected", re.IGNORECASE)
    assert [line for line in up.lines() if alarming.search(line)] == [], (
        "nothing is wrong, and nothing says so"
    )

    psutil.Process(up.pid_of("w1@%h")).kill()
    up.wait_for("worker1 died (signal 9, SIGKILL); it is started again in 0.5 s")
    up.wait_for("worker1 is ready again")
    submit(shop, 5)
    wait_until(lambda: states(shop) == {"succeeded": 65}, within_s=30, what="the new worker works")

    until_then = len(up.lines())
    code, seconds = end(up.process)
    assert code == 0, up.log.read_text()[-3000:]
    assert seconds < 10, "nothing was in flight"
    assert [line for line in up.lines()[until_then:] if alarming.search(line)] == [], "nor is it at the stop"
    assert any("flower.stopping" in line for line in up.lines()[until_then:])
    assert is_deserted(shop.folder)
    unprefixed = [line for line in up.lines() if not PREFIXED.match(line)]
    assert unprefixed == []
    assert "\x1b" not in up.log.read_text(), "no colours in a file"
    assert not any(line.partition("| ")[2].startswith("{") for line in up.lines()), "no raw JSON"


@pytest.mark.full
@pytest.mark.simulator("--latency", "60")
def test_a_second_ctrl_c_cuts_the_calls_and_their_jobs_are_given_back(
    shop: Shop, simulator: SimulatorProcess
) -> None:
    up = Up(shop, "--no-flower", grace_s=50, concurrency=4)
    up.wait_for("ready: 1 worker")
    submit(shop, 8)
    wait_until(lambda: simulator.stats()["in_flight"] == 4, within_s=20, what="all slots are in a call")
    up.process.send_signal(signal.SIGINT)
    up.wait_for("stopping: calls in flight have 50 s to end")
    time.sleep(1)
    assert simulator.stats()["in_flight"] == 4, "the first Ctrl-C waits"
    code, seconds = end(up.process, signal.SIGINT)
    assert code == 0, up.log.read_text()[-3000:]
    assert seconds < 8
    assert is_deserted(shop.folder)
    assert states(shop) == {"queued": 8}


@pytest.mark.full
@pytest.mark.simulator("--latency", "60")
def test_a_stop_ends_within_the_grace(shop: Shop, simulator: SimulatorProcess) -> None:
    up = Up(shop, "--no-flower", "--workers", "2", grace_s=2, concurrency=2)
    up.wait_for("ready: 2 workers")
    submit(shop, 8)
    wait_until(lambda: simulator.stats()["in_flight"] == 4, within_s=20, what="all slots are in a call")
    code, seconds = end(up.process, signal.SIGHUP)
    assert code == 0, up.log.read_text()[-3000:]
    assert seconds < 2 + 2 + 2, "grace, what a worker needs to leave, and the broker's own stop"
    assert is_deserted(shop.folder)
    assert states(shop) == {"queued": 8}


@pytest.mark.full
@pytest.mark.simulator("--latency", "60")
def test_up_that_is_killed_leaves_nothing_running(shop: Shop, simulator: SimulatorProcess) -> None:
    up = Up(shop, "--flower-port", str(free_port()), grace_s=1, concurrency=2)
    up.wait_for("ready: 1 worker, Flower")
    submit(shop, 4)
    wait_until(lambda: simulator.stats()["in_flight"] == 2, within_s=20, what="all slots are in a call")
    end(up.process, signal.SIGKILL)
    wait_until(lambda: is_deserted(shop.folder), within_s=10, what="everything ends with up")


def test_a_broker_that_dies_comes_back_and_so_does_its_keeper(shop: Shop) -> None:
    up = Up(shop, "--no-flower")
    up.wait_for("ready: 1 worker")
    home = shop.folder / ".antrean"
    for words in ("valkey.sock", "worker.stack.keeper"):
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(home) in line and words in line:
                process.kill()
        if words == "valkey.sock":
            up.wait_for("the broker died (signal 9, SIGKILL); the keeper starts it again")
    up.wait_for("the embedded broker runs again")
    submit(shop, 10)
    wait_until(lambda: states(shop) == {"succeeded": 10}, within_s=40, what="all jobs end")
    assert end(up.process)[0] == 0
    assert is_deserted(shop.folder)


def test_a_used_port_is_a_sentence_and_nothing_is_started(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = shop.antrean("up", "--flower-port", str(port))
    assert (done.code, done.out) == (4, "")
    assert done.err == (
        f"antrean: 127.0.0.1:{port} cannot be listened on (Address already in use): "
        "choose another --flower-port, or --no-flower\n"
    )
    assert is_deserted(shop.folder)
    assert not (shop.folder / ".antrean" / "antrean.db").exists()


def test_what_cannot_work_is_a_sentence_before_anything_starts(
    shop: Shop, postgres_url: Callable[[str], str]
) -> None:
    away = shop.antrean("up", "--no-flower", broker_url=f"redis://127.0.0.1:{free_port()}/0")
    assert (away.code, away.out) == (4, "")
    assert "the broker does not answer" in away.err
    assert "ANTREAN_BROKER_URL" in away.err
    bare = shop.antrean("up", "--no-flower", database_url=postgres_url("up_unmigrated"))
    assert (bare.code, bare.out) == (4, "")
    assert "run `antrean migrate` first" in bare.err
    wrong = shop.antrean("up", "--no-flower", lease_s=-1)
    assert (wrong.code, wrong.out) == (3, "")
    assert is_deserted(shop.folder)


def test_one_home_has_one_up(shop: Shop) -> None:
    up = Up(shop, "--no-flower")
    up.wait_for("ready: 1 worker")
    second = shop.antrean("up", "--no-flower")
    assert second.code == 4
    assert "already" in second.err
    assert end(up.process, signal.SIGINT)[0] == 0
    assert is_deserted(shop.folder)


def test_a_reader_that_stops_reading_holds_up_no_job(shop: Shop) -> None:
    """As a terminal does after Ctrl-S. The pipe holds 64 KiB, and each job says several lines."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "worker.cli", "up", "--no-flower"],
        cwd=shop.folder,
        env=environment({**shop.settings, "log_level": "debug"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    shop.started.append(process)
    submit(shop, 300)
    wait_until(lambda: states(shop) == {"succeeded": 300}, within_s=60, what="all jobs end")
    assert end(process)[0] == 0
    assert process.stdout is not None
    process.stdout.close()
    assert is_deserted(shop.folder)
