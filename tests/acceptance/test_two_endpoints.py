"""Two endpoints, or two ledgers, side by side: neither takes the other's hints, nor its worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_run import result_lines, write_documents
from tests.acceptance.test_workers import queue
from tests.support.audit import states
from tests.support.processes import Shop, SimulatorProcess, end, processes_under, wait_until
from worker.settings import Settings, load_settings
from worker.storage.engine import Ledger
from worker.storage.workers import fetch_workers


@pytest.fixture
def other_simulator() -> Iterator[SimulatorProcess]:
    process = SimulatorProcess("--latency", "0.05")
    yield process
    process.close()


def begin_run(shop: Shop, name: str, **settings: object) -> None:
    """A run that is at work in the shop's home; its results go to `<name>.jsonl`."""
    command = ("run", "documents", "-p", "prompt.md", "-o", f"{name}.jsonl", "--model", "DeepSeek-V3.1")
    shop.begin("worker.cli", *command, log=f"{name}.log", **settings)
    log = Path(str(shop.settings["home"])) / "logs" / "worker.log"
    wait_until(lambda: log.exists() and "ready." in log.read_text(), within_s=30, what="its worker is ready")


@pytest.mark.full
@pytest.mark.simulator("--latency", "4", "--key", "one")
def test_a_second_run_with_another_endpoint_and_key_gets_its_work_done_meanwhile(
    shop: Shop, simulator: SimulatorProcess, other_simulator: SimulatorProcess
) -> None:
    write_documents(shop.folder, 4)
    begin_run(shop, "first", api_key="one", concurrency=4)
    second = shop.antrean(
        "run",
        "documents",
        "-p",
        "prompt.md",
        "-o",
        "second.jsonl",
        "--model",
        "DeepSeek-V3.1",
        base_url=other_simulator.url,
        api_key="two-is-a-secret",
        timeout_s=40,
    )
    assert second.code == 0, second.err
    assert len(result_lines(shop.folder / "second.jsonl")) == 4
    assert "has one of its own" in second.err
    assert "worker-2.log" in second.err.replace("\n", "")
    assert len(other_simulator.calls()) == 4
    assert shop.started[0].wait(40) == 0, (shop.folder / "first.log").read_text()
    assert len(result_lines(shop.folder / "first.jsonl")) == len(simulator.calls()) == 4
    home = Path(str(shop.settings["home"]))
    assert not any("secret" in path.read_text() for path in (home / "logs").iterdir())
    wait_until(lambda: not processes_under(shop.folder), within_s=10, what="nothing is left running")


@pytest.mark.full
@pytest.mark.simulator("--latency", "3")
def test_a_second_run_with_another_ledger_gets_its_work_done_meanwhile(
    shop: Shop, simulator: SimulatorProcess
) -> None:
    """The endpoint and the broker are the same; neither worker takes what is the other's."""
    write_documents(shop.folder, 12)
    other = {"database_url": f"sqlite:///{shop.folder}/other.db"}
    assert shop.antrean("migrate", **other).code == 0
    begin_run(shop, "first", concurrency=4)
    command = ("run", "documents", "-p", "prompt.md", "-o", "second.jsonl", "--model", "DeepSeek-V3.1")
    second = shop.antrean(*command, concurrency=4, timeout_s=60, **other)
    assert second.code == 0, second.err
    assert len(result_lines(shop.folder / "second.jsonl")) == 12
    assert shop.started[0].wait(40) == 0, (shop.folder / "first.log").read_text()
    assert len(result_lines(shop.folder / "first.jsonl")) == 12
    logs = Path(str(shop.settings["home"])) / "logs"
    for name in ("worker", "worker-2"):
        said = (logs / f"{name}.log").read_text()
        assert not any(word in said for word in ("relay.published_again", "worker.died")), said


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.2")
@pytest.mark.parametrize("plant", ["sqlite"], indirect=True)
def test_workers_of_two_endpoints_on_one_broker_leave_each_others_hints_alone(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    elsewhere = load_settings(**{**plant.settings, "endpoint_name": "elsewhere"}, _env_file=None)
    beside = plant.worker(concurrency=4, endpoint_name="elsewhere", log="beside.log")
    plant.worker(concurrency=4)
    queue(plant_ledger, plant_settings, 60)
    wait_until(lambda: states(plant_ledger)["succeeded"] == 60, within_s=30, what="all jobs end")
    assert len(simulator.calls()) == 60
    queue(plant_ledger, elsewhere, 8)
    wait_until(lambda: states(plant_ledger)["succeeded"] == 68, within_s=12, what="the other's end as well")
    with plant_ledger.read() as connection:
        assert sorted(one.endpoint for one in fetch_workers(connection)) == sorted(
            ["elsewhere", plant_settings.endpoint]
        )
    for log in ("worker.log", "beside.log"):
        said = (plant.folder / log).read_text()
        assert "relay.published_again" not in said, "a hint that another worker took would be missed"
    assert end(beside)[0] == 0


@pytest.mark.parametrize("plant", ["sqlite"], indirect=True)
def test_celerys_own_purge_finds_the_queues_of_this_ledger_and_endpoint(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, valkey: object
) -> None:
    from worker.broker.hints import (  # local: only here is a hint written by hand
        list_key,
        queues_of,
        write_hint,
    )
    from worker.storage.identity import fetch_identity

    with plant_ledger.read() as connection:
        queues = queues_of(fetch_identity(connection), plant_settings.endpoint)
    for queue_name in queues.names:
        hint = write_hint("j", queue=queue_name, priority=9)
        valkey.lpush(list_key(queue_name, 9), hint)  # type: ignore[attr-defined]
    log = "purge.log"
    assert plant.begin("celery", "-A", "worker", "purge", "-f", log=log).wait(30) == 0
    assert "Purged 2 messages" in (plant.folder / log).read_text(), json.dumps(list(queues.names))
