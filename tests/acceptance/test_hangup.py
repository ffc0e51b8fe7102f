"""A terminal that is closed: what was started with `nohup` goes on, everything else ends in order."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.test_run import result_lines, write_documents
from tests.support.processes import (
    Process,
    Shop,
    SimulatorProcess,
    end,
    ignoring,
    processes_under,
    wait_until,
)

pytestmark = pytest.mark.real_interpreter

GOES_ON_S = 2.0


def ignores_hangup(process: Process) -> bool:
    facts = Path(f"/proc/{process.pid}/status").read_text()
    (mask,) = [line.split()[1] for line in facts.splitlines() if line.startswith("SigIgn:")]
    return bool(int(mask, 16) & 1 << (signal.SIGHUP - 1))


def goes_on_after_a_hangup(process: Process) -> bool:
    process.send_signal(signal.SIGHUP)
    try:
        process.wait(GOES_ON_S)
    except subprocess.TimeoutExpired:
        return ignores_hangup(process)
    return False


@pytest.mark.full
@pytest.mark.simulator("--latency", "1.5")
def test_a_run_that_ignores_hangups_goes_on_to_its_end(shop: Shop, simulator: SimulatorProcess) -> None:
    write_documents(shop.folder, 3)
    with ignoring(signal.SIGHUP):
        run = shop.begin("worker.cli", "run", "documents", "-p", "prompt.md", concurrency=1)
    wait_until(lambda: simulator.stats()["in_flight"] == 1, within_s=30, what="a call is in flight")
    assert goes_on_after_a_hangup(run)
    assert run.wait(60) == 0
    assert len(result_lines(shop.folder / "results.jsonl")) == 3


@pytest.mark.simulator("--latency", "60")
def test_a_run_ends_in_order_where_a_hangup_is_not_ignored(shop: Shop, simulator: SimulatorProcess) -> None:
    write_documents(shop.folder, 2)
    run = shop.begin("worker.cli", "run", "documents", "-p", "prompt.md", grace_s=1)
    wait_until(lambda: simulator.stats()["in_flight"] == 2, within_s=30, what="calls are in flight")
    code, _ = end(run, signal.SIGHUP)
    assert code == 130
    assert processes_under(shop.folder) == []


@pytest.mark.full
def test_up_that_ignores_hangups_stays(shop: Shop) -> None:
    log = shop.folder / "up.log"
    with ignoring(signal.SIGHUP):
        up = shop.begin("worker.cli", "up", "--no-flower", log=log.name)
    wait_until(lambda: "ready: 1 worker" in log.read_text(), within_s=40, what="up is ready")
    assert goes_on_after_a_hangup(up)
    assert end(up)[0] == 0


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.2")
def test_a_worker_that_ignores_hangups_stays(shop: Shop, simulator: SimulatorProcess) -> None:
    with ignoring(signal.SIGHUP):
        worker = shop.worker(grace_s=1)
    assert goes_on_after_a_hangup(worker)
    assert (shop.folder / "worker.log").read_text().count("ready.") == 1, "Celery began nothing anew"
    assert end(worker)[0] == 0


@pytest.mark.full
@pytest.mark.simulator("--latency", "1.5")
def test_a_worker_lets_its_calls_end_where_a_hangup_is_not_ignored(
    shop: Shop, simulator: SimulatorProcess
) -> None:
    write_documents(shop.folder, 1)
    (shop.folder / "r.jsonl").write_text(
        '{"model":"DeepSeek-V3.1","messages":[{"role":"user","content":"Hi."}]}\n'
    )
    assert shop.antrean("submit", "r.jsonl").code == 0
    worker = shop.worker(grace_s=10)
    wait_until(lambda: simulator.stats()["in_flight"] == 1, within_s=20, what="the call is in flight")
    code, _ = end(worker, signal.SIGHUP)
    assert code == 0
    assert (shop.folder / "worker.log").read_text().count("ready.") == 1
    assert shop.antrean("status", "--json").json["jobs"]["succeeded"] == 1
    assert simulator.stats()["calls"] == 1
