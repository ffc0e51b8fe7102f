"""Workers on a machine that has too little of something. It is nobody's fault but the machine's, and kills no call."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select

from tests.acceptance.test_workers import queue
from tests.support.audit import assert_sound, states
from tests.support.processes import Shop, SimulatorProcess, wait_until
from worker.settings import Settings
from worker.storage.engine import Ledger
from worker.storage.tables import attempts, jobs, workers

pytestmark = [
    pytest.mark.real_interpreter,
    pytest.mark.parametrize(
        "plant",
        ["sqlite", pytest.param("postgresql", marks=[pytest.mark.postgresql, pytest.mark.full])],
        indirect=True,
    ),
]
SETTINGS_CODE, LACK_CODE, INTERNAL_CODE = 3, 4, 70


def limited(folder: Path, *, files: tuple[int, int] | None = None, memory: int | None = None) -> Path:
    """A folder that a process imports from first, and is limited by: (soft, hard) files, bytes of addresses."""
    lines = ["import resource"]
    if files is not None:
        lines.append(f"resource.setrlimit(resource.RLIMIT_NOFILE, {files})")
    if memory is not None:
        lines.append(f"resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))")
    path = folder / "limits"
    path.mkdir()
    (path / "sitecustomize.py").write_text("\n".join(lines))
    return path


def assert_is_refused(shop: Shop, *words: str, code: int = SETTINGS_CODE) -> None:
    [worker] = shop.started
    assert worker.wait(60) == code
    said = (shop.folder / "worker.log").read_text()
    for word in words:
        assert word in said
    assert "Traceback" not in said


def test_slots_beyond_the_hard_limit_of_files_are_refused_and_those_that_fit_are_told(plant: Shop) -> None:
    plant.begin_worker(python_path=limited(plant.folder, files=(200, 200)), concurrency=300)
    assert_is_refused(
        plant, "ANTREAN_CONCURRENCY: 300 slots need 418 open files", "may have 200", "95 at most"
    )


def test_as_many_slots_as_were_said_to_fit_begin(plant: Shop) -> None:
    plant.worker(python_path=limited(plant.folder, files=(200, 200)), concurrency=95)


def test_slots_beyond_the_threads_that_can_begin_are_refused(plant: Shop) -> None:
    plant.begin_worker(python_path=limited(plant.folder, memory=1500 << 20), concurrency=1000)
    assert_is_refused(plant, "ANTREAN_CONCURRENCY: 1000 slots need 1135 threads", "at most")


_NO_THREAD = """
import threading
_start = threading.Thread.start
def _refuse(thread):
    if thread.name.startswith({name!r}):
        raise RuntimeError("can't start new thread")
    _start(thread)
threading.Thread.start = _refuse
"""


@pytest.mark.parametrize(
    "name", ["ThreadPoolExecutor", pytest.param("antrean-relay", marks=pytest.mark.full)]
)
def test_a_worker_for_which_no_thread_begins_ends_with_a_sentence(plant: Shop, name: str) -> None:
    """Others of the same user took them since they were counted. With none in its pool it would claim and never call."""
    path = plant.folder / "limits"
    path.mkdir()
    (path / "sitecustomize.py").write_text(_NO_THREAD.format(name=name))
    plant.begin_worker(python_path=path, concurrency=4)
    assert_is_refused(plant, "this machine lets no more threads begin", "raise the limit", code=LACK_CODE)


@pytest.mark.full
@pytest.mark.simulator("--latency", "1.5")
def test_the_soft_limit_of_files_is_raised_to_what_the_slots_need(
    plant: Shop, plant_settings: Settings, plant_ledger: Ledger, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 200)
    plant.worker(python_path=limited(plant.folder, files=(120, 4096)), concurrency=100)
    wait_until(lambda: states(plant_ledger)["succeeded"] == 200, within_s=30, what="all are done")
    assert simulator.stats()["max_in_flight"] == 100
    assert simulator.stats()["calls"] == 200
    log = (plant.folder / "worker.log").read_text()
    assert "gate.shut" not in log


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.5")
def test_a_worker_that_runs_out_of_files_shuts_no_gate_burns_nothing_and_goes_on(
    plant: Shop, plant_settings: Settings, plant_ledger: Ledger, simulator: SimulatorProcess
) -> None:
    """Its heartbeat goes on meanwhile: nobody takes it for dead."""
    worker = plant.worker(concurrency=24)
    process = psutil.Process(worker.pid)
    before = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + 6, before[1]))
    queue(plant_ledger, plant_settings, 120)
    began_s = time.monotonic()
    log = plant.folder / "worker.log"
    wait_until(
        lambda: log.read_text().count("call.local_shortage") >= 10, within_s=30, what="calls are refused"
    )
    beats = count_beats(plant_ledger)
    # The beats of two leases: long enough to be taken for dead, and to loop.
    wait_until(lambda: count_beats(plant_ledger) >= beats + 12, within_s=30, what="its heartbeat goes on")
    assert worker.poll() is None
    assert simulator.stats()["calls"] > 0, "what there is room for goes on"
    refused = log.read_text().count("call.local_shortage")
    assert refused <= 120 * (1 + time.monotonic() - began_s), "each job waits a second at least"
    process.rlimit(resource.RLIMIT_NOFILE, before)
    wait_until(lambda: states(plant_ledger)["succeeded"] == 120, within_s=60, what="all are done")
    assert "gate.shut" not in log.read_text()
    assert "worker.lost" not in log.read_text()
    with plant_ledger.read() as connection:
        burnt = connection.execute(select(jobs.c.id).where(jobs.c.attempts > 1)).all()
        said = connection.execute(select(attempts.c.message).where(attempts.c.outcome == "unreachable")).all()
    assert burnt == []
    assert all("open files" in one.message for one in said)
    assert simulator.stats()["calls"] == 120
    assert_sound(plant_ledger)


def count_beats(ledger: Ledger) -> int:
    """Beats of all workers so far."""
    with ledger.read() as connection:
        return int(connection.execute(select(func.sum(workers.c.sequence))).scalar_one())


_KILLER = """
import ctypes, pathlib, threading, time
def _watch():
    while not pathlib.Path("die").exists():
        time.sleep(0.05)
    for thread in threading.enumerate():
        if thread.name == pathlib.Path("die").read_text():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
threading.Thread(target=_watch, daemon=True).start()
"""


@pytest.mark.parametrize(
    "name",
    [
        "antrean-writer",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("antrean-relay", "antrean-heartbeat")),
    ],
)
@pytest.mark.simulator("--latency", "2")
def test_a_worker_whose_thread_dies_ends_its_calls_first(
    plant: Shop, plant_settings: Settings, plant_ledger: Ledger, simulator: SimulatorProcess, name: str
) -> None:
    """What they bring is recorded, or spooled where the writer itself is gone, and its supervisor hears of a defect."""
    path = plant.folder / "killer"
    path.mkdir()
    (path / "sitecustomize.py").write_text(_KILLER)
    queue(plant_ledger, plant_settings, 30)
    worker = plant.worker(python_path=path, concurrency=8, grace_s=10, relay_interval_s=0.1)
    wait_until(lambda: simulator.stats()["in_flight"] == 8, within_s=20, what="all slots are in a call")
    (plant.folder / "die.new").write_text(name)
    (plant.folder / "die.new").rename(plant.folder / "die")
    assert worker.wait(30) == INTERNAL_CODE
    log = (plant.folder / "worker.log").read_text()
    died = [json.loads(line) for line in log.splitlines() if "worker.thread_died" in line]
    assert [one["thread"] for one in died] == [name]
    paid = simulator.stats()["calls"]
    assert paid >= 8
    if name == "antrean-writer":
        assert log.count("result.spooled") == paid - states(plant_ledger)["succeeded"]
        plant.worker(log="next.log")
    wait_until(
        lambda: states(plant_ledger)["succeeded"] >= paid, within_s=20, what="what was paid for is recorded"
    )
    if name != "antrean-writer":
        assert states(plant_ledger)["running"] == 0
    assert all(call["received"] == 1 for call in simulator.calls().values())
    with plant_ledger.read() as connection:
        assert connection.execute(select(jobs.c.id).where(jobs.c.losses > 0)).all() == []
