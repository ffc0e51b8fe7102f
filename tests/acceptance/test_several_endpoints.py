"""Several endpoints: real runs and workers whose jobs go to more than one, while one of them dies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from threading import Event

import pytest

from tests.acceptance.test_run import result_lines, write_documents
from tests.acceptance.test_workers import queue
from tests.support.audit import assert_sound, states
from tests.support.processes import Shop, SimulatorProcess, wait_until
from worker.settings import Settings, load_settings
from worker.storage.engine import Ledger, open_ledger


@pytest.fixture
def other_simulator() -> Iterator[SimulatorProcess]:
    process = SimulatorProcess("--latency", "0.2")
    yield process
    process.close()


def is_quiet(simulator: SimulatorProcess) -> bool:
    """Whether no call comes within half a second."""
    before = simulator.stats()["calls"]
    Event().wait(0.5)
    return bool(simulator.stats()["calls"] == before)


@pytest.mark.simulator("--latency", "0.2")
def test_a_run_with_two_endpoints_loses_nothing_when_one_is_killed(
    shop: Shop, simulator: SimulatorProcess, other_simulator: SimulatorProcess
) -> None:
    write_documents(shop.folder, 400)
    del shop.settings["base_url"], shop.settings["api_key"]
    (shop.folder / "antrean.toml").write_text(
        f'[endpoints.dies]\nbase_url = "{simulator.url}"\napi_key = "k"\nconcurrency = 8\n'
        f'[endpoints.lives]\nbase_url = "{other_simulator.url}"\napi_key = "k"\nconcurrency = 8\n'
    )
    run = shop.begin(
        *("worker.cli", "run", "documents", "-p", "prompt.md", "-o", "out.jsonl", "--model", "DeepSeek-V3.1"),
        log="run.log",
    )
    wait_until(lambda: simulator.stats()["calls"] > 40, within_s=40, what="the run is in its middle")
    simulator.kill()
    assert run.wait(90) == 0, (shop.folder / "run.log").read_text()
    assert len(result_lines(shop.folder / "out.jsonl")) == 400
    simulator.restart()  # to ask it for its counts of before
    paid = sum(one["paid"] for one in (*simulator.calls().values(), *other_simulator.calls().values()))
    assert paid <= 400 + 8, "calls that were cut off by its end are made twice, and no others"
    ledger = open_ledger(load_settings(home=shop.folder / ".antrean", _env_file=None))
    assert_sound(ledger)
    ledger.dispose()


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.2")
@pytest.mark.parametrize("plant", ["sqlite"], indirect=True)
def test_two_workers_pass_a_dead_endpoint_by_and_call_it_again_when_it_is_back(
    plant: Shop,
    plant_ledger: Ledger,
    plant_settings: Settings,
    simulator: SimulatorProcess,
    other_simulator: SimulatorProcess,
) -> None:
    told = {"api_key": "k", "concurrency": 6}
    tables = {
        "dies": {"base_url": simulator.url, **told},
        "lives": {"base_url": other_simulator.url, **told},
    }
    del plant.settings["base_url"], plant.settings["api_key"]
    queue(plant_ledger, plant_settings, 1500)
    for number in (1, 2):
        plant.worker(endpoint_tables=json.dumps(tables), log=f"worker{number}.log")
    wait_until(lambda: simulator.stats()["calls"] > 60, within_s=20, what="both are called")
    simulator.set_faults(outage_status=503)
    logs = [plant.folder / f"worker{number}.log" for number in (1, 2)]
    wait_until(
        lambda: any("gate.shut" in log.read_text() for log in logs), within_s=10, what="its gate is shut"
    )
    wait_until(lambda: simulator.stats()["in_flight"] == 0, what="those in flight have ended")
    wait_until(lambda: is_quiet(simulator), what="both workers know it")
    before, done = simulator.stats()["calls"], states(plant_ledger)["succeeded"]
    wait_until(lambda: states(plant_ledger)["succeeded"] > done + 250, within_s=30, what="the other works on")
    shut = simulator.stats()["calls"] - before
    assert shut <= 6, "a probe at a time: after 1, 2, 4, 5 s"
    simulator.set_faults(outage_status=None)
    wait_until(
        lambda: simulator.stats()["calls"] > before + shut + 40, within_s=15, what="it is called again"
    )
    wait_until(lambda: states(plant_ledger)["succeeded"] == 1500, within_s=60, what="all jobs end")
    assert_sound(plant_ledger)


@pytest.mark.full
@pytest.mark.simulator("--latency", "4")
@pytest.mark.parametrize("plant", ["sqlite"], indirect=True)
def test_messages_of_a_slow_endpoint_hold_up_no_jobs_of_another(
    plant: Shop,
    plant_ledger: Ledger,
    plant_settings: Settings,
    simulator: SimulatorProcess,
    other_simulator: SimulatorProcess,
) -> None:
    tables = {
        "slow": {"base_url": simulator.url, "api_key": "k", "models": ["slow-*"], "concurrency": 4},
        "fast": {"base_url": other_simulator.url, "api_key": "k", "models": ["Deep*"], "concurrency": 16},
    }
    del plant.settings["base_url"], plant.settings["api_key"]
    simulator.set_faults(models=["slow-1"])
    other_simulator.set_faults(latency_s=0.05)
    queue(plant_ledger, plant_settings, 600, model="slow-1")
    plant.worker(endpoint_tables=json.dumps(tables))
    wait_until(lambda: simulator.stats()["in_flight"] == 4, within_s=20, what="the slow one is full")
    Event().wait(1.0)  # the worker has as many of its messages as it takes
    queue(plant_ledger, plant_settings, 300)
    wait_until(lambda: other_simulator.stats()["paid"] == 300, within_s=10, what="the others are called")
    assert simulator.stats()["max_in_flight"] == 4
