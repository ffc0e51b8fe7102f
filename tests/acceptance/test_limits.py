"""Limits of an endpoint, kept by real workers together; and the limit that they find by themselves."""

from __future__ import annotations

import signal
from functools import partial
from threading import Event

import pytest

from tests.acceptance.test_workers import queue
from tests.support.audit import assert_sound, states
from tests.support.processes import Shop, SimulatorProcess, end, wait_until
from worker.clock import SystemClock
from worker.settings import Settings
from worker.storage.engine import Ledger
from worker.storage.limits import LimitKind, LimitSource, fetch_changes, fetch_limits, set_limits


def limit(ledger: Ledger, settings: Settings, **values: int | None) -> None:
    """What `antrean limits set` does."""
    kinds = {LimitKind(name): value for name, value in values.items()}
    ledger.run(partial(set_limits, endpoint=settings.endpoint, values=kinds, now_ms=SystemClock().now_ms()))


@pytest.mark.simulator("--latency", "0.5")
def test_two_workers_have_no_more_calls_in_flight_than_was_set_also_when_one_dies(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    limit(plant_ledger, plant_settings, in_flight=60)
    queue(plant_ledger, plant_settings, 700)
    victim = plant.worker(concurrency=100)
    plant.worker(concurrency=100)
    wait_until(lambda: states(plant_ledger)["succeeded"] > 200, within_s=30, what="the run is in its middle")
    assert 50 <= simulator.stats()["max_in_flight"] <= 60
    end(victim, signal.SIGKILL)
    wait_until(lambda: simulator.stats()["in_flight"] >= 55, within_s=10, what="the other has all of it")
    wait_until(lambda: states(plant_ledger)["succeeded"] == 700, within_s=60, what="all jobs end")
    assert_sound(plant_ledger)
    assert simulator.stats()["max_in_flight"] <= 60


@pytest.mark.simulator("--latency", "0.3")
def test_a_limit_that_is_set_or_cleared_acts_on_a_running_worker_within_a_second(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 2000)
    plant.worker(concurrency=40, lone_slots=0)
    wait_until(lambda: simulator.stats()["in_flight"] == 40, within_s=20, what="all slots are in use")
    limit(plant_ledger, plant_settings, in_flight=5)
    Event().wait(1.0 + 0.3)  # and the calls that were in flight have ended
    assert simulator.stats()["in_flight"] <= 5
    limit(plant_ledger, plant_settings, in_flight=None)
    wait_until(lambda: simulator.stats()["in_flight"] == 40, within_s=1.5, what="all slots are in use again")


@pytest.mark.simulator("--latency", "0.2", "--refuse-above", "40")
def test_auto_finds_the_limit_of_an_endpoint_that_refuses_and_remembers_it(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 1500)
    worker = plant.worker()
    wait_until(lambda: states(plant_ledger)["succeeded"] == 1500, within_s=60, what="all jobs end")
    assert_sound(plant_ledger)
    end(worker)
    with plant_ledger.read() as connection:
        [found] = fetch_limits(connection, plant_settings.endpoint)
        changes = fetch_changes(connection, plant_settings.endpoint, at_most=100)
    assert found.source is LimitSource.FOUND
    assert found.value is not None and 25 <= found.value <= 45
    assert any(one.reason is not None and "refused" in one.reason for one in changes)
    assert simulator.stats()["calls"] < 1500 * 1.15


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.2", "--rpm", "612")
def test_two_workers_keep_six_hundred_requests_a_minute_and_use_nearly_all_of_them(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    """The endpoint refuses what is more than 2 % above it in any minute."""
    limit(plant_ledger, plant_settings, requests_per_min=600)
    queue(plant_ledger, plant_settings, 3000)
    plant.worker(concurrency=32)
    plant.worker(concurrency=32)
    wait_until(lambda: simulator.stats()["calls"] > 20, within_s=20, what="calls are made")
    before = simulator.stats()["calls"]
    Event().wait(90)
    after = simulator.stats()
    assert after["calls"] - before >= 900 * 0.95
    assert after["refused"] == {}


@pytest.mark.full
@pytest.mark.measures
@pytest.mark.simulator("--latency", "2")
def test_two_workers_keep_sixty_calls_of_two_seconds_in_flight(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    limit(plant_ledger, plant_settings, in_flight=60)
    queue(plant_ledger, plant_settings, 2000)
    plant.worker(concurrency=64)
    plant.worker(concurrency=64)
    wait_until(lambda: simulator.stats()["in_flight"] >= 58, within_s=20, what="the limit is in use")
    before = simulator.stats()["calls"]
    Event().wait(16)
    after = simulator.stats()
    assert after["max_in_flight"] <= 60
    assert after["calls"] - before >= 16 * 30 * 0.95


@pytest.mark.full
@pytest.mark.measures
# Without a latency: with one of 0.5 s, 36 calls must be in flight, so that 24 of them are at the knee.
@pytest.mark.simulator("--call-tokens", "50", "--answer-tokens", "50", "--knee", "24", "--latency", "0.02")
def test_auto_does_nearly_all_the_work_that_a_server_can_that_never_refuses(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 3000)
    plant.worker()
    wait_until(lambda: simulator.stats()["calls"] > 20, within_s=20, what="calls are made")
    Event().wait(45)
    before, in_flight = simulator.stats()["calls"], []
    for _ in range(40):
        Event().wait(0.5)
        in_flight.append(simulator.stats()["in_flight"])
    after = simulator.stats()
    assert after["calls"] - before >= 24 * 20 * 0.9
    assert max(in_flight) <= 1.5 * 24 + 2, "also while a higher limit is tried"
    assert sum(in_flight) / len(in_flight) <= 1.5 * 24
