"""What Flower shows of a job that was tried more than once: how often, and of a success no reason to wait."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery

from tests.support.processes import Shop, SimulatorProcess, free_port, wait_until
from tests.support.scene import REQUEST, Scene
from worker.files.home import broker_url


@pytest.fixture
def shown(folder: Path, simulator: SimulatorProcess) -> Scene:
    settings = {"home": folder / ".antrean", "base_url": simulator.url, "api_key": "k", "lease_s": 3}
    shop = Shop(folder, {**settings, "backoff_base_s": 0.1, "backoff_cap_s": 0.2, "max_attempts": 1000})
    foreign = Celery("another", broker=broker_url(folder / ".antrean"), set_as_current=False)
    worker = shop.worker(concurrency=4)
    return Scene(shop, simulator, free_port(), foreign, worker, worker)


@pytest.mark.timeout(120)
@pytest.mark.simulator("--latency", "0.02")
def test_a_retried_success_shows_its_retries_and_no_exception(shown: Scene) -> None:
    try:
        shown.begin_flower()
        at_once = shown.send("at-once", kwargs={"request": REQUEST})
        wait_until(lambda: shown.state(at_once) == "SUCCESS", within_s=20, what="a job succeeds at once")
        shown.simulator.set_faults(rate_cut_json=1.0)
        retried = shown.send("retried", kwargs={"request": REQUEST})
        wait_until(
            lambda: (shown.tasks().get(retried, {}).get("retries") or 0) >= 2,
            within_s=20,
            what="it was retried twice",
        )
        waiting = shown.tasks()[retried]
        assert waiting["exception"].startswith("waits: "), waiting
        shown.simulator.set_faults(rate_cut_json=0.0)
        wait_until(lambda: shown.state(retried) == "SUCCESS", within_s=20, what="it succeeds in the end")
        tasks = shown.tasks()
        attempts = shown.shop.antrean("show", retried, "--json").json["attempts"]
        assert (tasks[retried]["exception"], tasks[retried]["retries"]) == (None, len(attempts) - 1)
        assert (tasks[at_once]["exception"], tasks[at_once]["retries"]) == (None, 0)
    finally:
        shown.foreign.close()
        shown.shop.close()
