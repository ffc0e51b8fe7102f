"""Limits that answers tell in their headers, kept by real workers before anything is refused."""

from __future__ import annotations

import time
from threading import Event
from typing import Any

import pytest

from tests.acceptance.test_workers import queue
from tests.support.processes import Shop, SimulatorProcess, wait_until
from worker.settings import Settings
from worker.storage.engine import Ledger

WINDOWS, WINDOW_S = 2, 20.0
# What is told is shared in the broker: the ledger has no part in it.
only_sqlite = pytest.mark.parametrize("plant", ["sqlite"], indirect=True)
HEADERS = ("--latency", "0.2", "--rate-window", str(WINDOW_S), "--rate-headers")


def count_in_windows(simulator: SimulatorProcess) -> dict[str, Any]:
    """What is counted in two whole windows, from a time on in which the first one is used up."""
    seen, since_s = -1, 0.0

    def is_quiet() -> bool:
        nonlocal seen, since_s
        paid = simulator.stats()["paid"]
        if paid != seen:
            seen, since_s = paid, time.monotonic()
        return paid > 100 and time.monotonic() - since_s > 1.5

    wait_until(is_quiet, within_s=3 * WINDOW_S, what="a window is used up")
    before = simulator.stats()
    Event().wait(WINDOWS * WINDOW_S)
    after = simulator.stats()
    return {"paid": after["paid"] - before["paid"], "refused": after["refused"]}


@pytest.mark.full
@only_sqlite
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.simulator(*HEADERS, "--rpm", "300", "--rate-shape", "window")
def test_a_window_of_requests_is_used_up_and_none_is_refused(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess, workers: int
) -> None:
    queue(plant_ledger, plant_settings, 2000)
    for _ in range(workers):
        plant.worker()
    counted = count_in_windows(simulator)
    assert counted["refused"] == {}
    assert 0.95 * WINDOWS * 300 <= counted["paid"] <= WINDOWS * 300


@pytest.mark.full
@only_sqlite
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.simulator(*HEADERS, "--tpm", "30000", "--answer-tokens", "95", "--rate-shape", "window")
def test_a_window_of_tokens_is_used_up_and_no_call_is_refused(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess, workers: int
) -> None:
    """A call takes 99 or 100 tokens."""
    queue(plant_ledger, plant_settings, 2000)
    for _ in range(workers):
        plant.worker(concurrency=24)
    counted = count_in_windows(simulator)
    assert counted["refused"] == {}
    assert 0.95 * WINDOWS * 300 <= counted["paid"] <= WINDOWS * 304


@pytest.mark.full
@only_sqlite
@pytest.mark.simulator(*HEADERS, "--rpm", "300", "--rate-shape", "bucket")
def test_of_a_bucket_all_is_used_that_comes_back(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 2000)
    plant.worker()
    wait_until(lambda: simulator.stats()["paid"] >= 300, within_s=30, what="what was saved up is used")
    Event().wait(2.0)
    before = simulator.stats()
    Event().wait(WINDOWS * WINDOW_S)
    after = simulator.stats()
    assert after["paid"] - before["paid"] >= 0.95 * WINDOWS * 300
    assert sum(after["refused"].values()) <= 0.02 * after["paid"]
