"""`antrean worker --drain`: a worker that ends when nothing is left to do, and says how it went."""

from __future__ import annotations

import signal

import pytest

from tests.acceptance.test_capacity import _KILLER
from tests.acceptance.test_commands_more import status, submit
from tests.acceptance.test_producers import REQUEST
from tests.support.audit import assert_sound, states
from tests.support.processes import Process, Shop, SimulatorProcess, end, wait_until
from worker.errors import ExitCode
from worker.storage.engine import Ledger


def drain(shop: Shop, **settings: object) -> Process:
    return shop.begin("worker.cli", "worker", "--drain", log="worker.log", **settings)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.simulator("--latency", "0.05", "--rate-500", "0.5", "--seed", "1")
def test_a_draining_worker_waits_for_retries_and_ends_with_0(plant: Shop, plant_ledger: Ledger) -> None:
    batch = submit(plant, 20)
    # Of 20 jobs that fail every other time, one in four such tests would have a job that fails six times in a row.
    assert drain(plant, backoff_base_s=0.2, max_attempts=50).wait(60) == 0
    assert status(plant, batch)["jobs"]["succeeded"] == 20
    assert_sound(plant_ledger)
    log = (plant.folder / "worker.log").read_text()
    assert '"event": "worker.drained"' in log
    assert "left_without_celery" not in log
    assert drain(plant).wait(60) == 0, "where nothing is left, it ends at once"


@pytest.mark.simulator("--latency", "0.05", "--rate-500", "1")
def test_jobs_that_failed_meanwhile_are_told_by_the_exit_code(plant: Shop, plant_ledger: Ledger) -> None:
    submit(plant, 2)
    worker = drain(plant, max_attempts=1)
    assert worker.wait(60) == ExitCode.FAILED_JOBS
    assert states(plant_ledger)["failed"] == 2
    # What failed before it began is not its own.
    assert drain(plant).wait(60) == 0


@pytest.mark.simulator("--latency", "30")
def test_a_draining_worker_that_is_stopped_before_its_end_says_so(plant: Shop, plant_ledger: Ledger) -> None:
    submit(plant, 2)
    worker = drain(plant, grace_s=3)
    wait_until(lambda: states(plant_ledger)["running"] == 2, within_s=30, what="the calls are in flight")
    assert end(worker, signal.SIGTERM)[0] == ExitCode.INTERRUPTED
    assert states(plant_ledger)["queued"] == 2


@pytest.mark.simulator("--latency", "0.05")
def test_messages_of_a_foreign_app_are_drained_too(
    plant: Shop,
    plant_ledger: Ledger,
    send,  # type: ignore[no-untyped-def]
) -> None:
    for _ in range(30):
        send(request=REQUEST)
    assert drain(plant, concurrency=4).wait(60) == 0
    assert states(plant_ledger) == {"succeeded": 30}


def test_the_embedded_stack_is_brought_up_and_left_by_a_draining_worker(shop: Shop) -> None:
    batch = submit(shop, 3)
    assert drain(shop).wait(60) == 0
    assert status(shop, batch)["jobs"]["succeeded"] == 3


@pytest.mark.simulator("--latency", "1")
def test_antrean_worker_ends_with_the_exit_code_of_its_worker(
    plant: Shop, simulator: SimulatorProcess, plant_ledger: Ledger
) -> None:
    """Celery's own `worker_main` drops it: a supervisor took a dead thread for an orderly end."""
    path = plant.folder / "killer"
    path.mkdir()
    (path / "sitecustomize.py").write_text(_KILLER)
    submit(plant, 4)
    worker = plant.begin("worker.cli", "worker", log="worker.log", python_path=path, grace_s=10)
    wait_until(lambda: simulator.stats()["in_flight"] > 0, within_s=30, what="it works")
    (plant.folder / "die.new").write_text("antrean-relay")
    (plant.folder / "die.new").rename(plant.folder / "die")
    assert worker.wait(30) == ExitCode.INTERNAL
