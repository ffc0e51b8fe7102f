"""Each of several keys has a limit of its own, which real workers find; one that is refused holds up no other."""

from __future__ import annotations

import json
from threading import Event

import pytest

from api_client.simulator.tally import name_key
from tests.acceptance.test_keys import burnt
from tests.acceptance.test_workers import queue
from tests.support.audit import assert_sound, states
from tests.support.processes import Shop, SimulatorProcess, end, wait_until
from worker.settings import Settings
from worker.storage.engine import Ledger
from worker.storage.limits import LimitSource, StoredLimit, fetch_limits

A, B = "sk-a", "sk-b"
only_sqlite = pytest.mark.parametrize("plant", ["sqlite"], indirect=True)


@pytest.fixture
def keyless(plant: Shop) -> Shop:
    """A plant whose workers are told their keys by the test."""
    del plant.settings["api_key"]
    return plant


def found(ledger: Ledger, settings: Settings) -> list[StoredLimit]:
    with ledger.read() as connection:
        stored = fetch_limits(connection, settings.endpoint)
    return [one for one in stored if one.source is LimitSource.FOUND]


NOTHING = {"calls": 0, "in_flight": 0, "paid": 0, "refused": 0}


def of_key(simulator: SimulatorProcess, key: str) -> dict[str, int]:
    """The simulator's counts of one key."""
    counts: dict[str, int] = simulator.stats()["keys"].get(name_key(key.encode()), NOTHING)
    return counts


def watch(simulator: SimulatorProcess, seconds: float) -> list[dict[str, float]]:
    """What the calls with each key came to in so many seconds: answers a second, calls, and those refused."""
    before = [of_key(simulator, key) for key in (A, B)]
    Event().wait(seconds)
    after = [of_key(simulator, key) for key in (A, B)]
    return [
        {"rate": (new["paid"] - old["paid"]) / seconds}
        | {name: new[name] - old[name] for name in ("calls", "refused")}
        for old, new in zip(before, after, strict=True)
    ]


@pytest.mark.full
@pytest.mark.measures
@only_sqlite
@pytest.mark.simulator("--latency", "0.2", "--key", f"{A},{B}", "--refuse-keys-above", "4,20")
def test_the_limit_of_each_key_is_found_and_few_calls_are_refused_once_it_is(
    keyless: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 4000)
    for _ in range(2):
        keyless.worker(api_keys=f"{A},{B}")
    wait_until(lambda: states(plant_ledger)["succeeded"] > 600, within_s=30, what="the limits are found")
    of_a, of_b = watch(simulator, 10)
    assert of_a["rate"] + of_b["rate"] >= 0.85 * (4 + 20) / 0.2
    assert of_a["refused"] + of_b["refused"] <= 0.03 * (of_a["calls"] + of_b["calls"])
    values = {one.key_id: one.value or 0 for one in found(plant_ledger, plant_settings)}
    assert len(values) == 2 and "" not in values
    low, high = sorted(values.values())
    assert 2 <= low <= 5 and 14 <= high <= 22


@pytest.mark.full
@pytest.mark.measures
@only_sqlite
@pytest.mark.simulator("--latency", "0.2", "--key", f"{A},{B}", "--refuse-keys-above", "20,20")
def test_a_key_that_is_refused_for_a_while_leaves_the_rate_of_the_other(
    keyless: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 5000)
    worker = keyless.worker(api_keys=f"{A},{B}")
    wait_until(lambda: states(plant_ledger)["succeeded"] > 1500, within_s=30, what="the limits are found")
    _, before = watch(simulator, 4)
    simulator.set_faults(refuse_keys_above="0,20")
    Event().wait(1)
    of_a, of_b = watch(simulator, 8)
    assert of_b["rate"] >= 0.9 * before["rate"] >= 0.7 * 20 / 0.2
    assert of_b["refused"] <= 0.03 * of_b["calls"]
    assert of_a["calls"] <= 8 * 5, "one at a time, after a pause of a quarter of a second"
    simulator.set_faults(refuse_keys_above="20,20")
    Event().wait(5)
    of_a, of_b = watch(simulator, 5)
    assert of_a["rate"] >= 0.8 * 20 / 0.2
    end(worker)
    assert_sound(plant_ledger)


@pytest.mark.full
@pytest.mark.measures
@only_sqlite
@pytest.mark.simulator("--latency", "0.2", "--key", f"{A},{B}", "--refuse-keys-above", "12,12")
def test_a_key_that_comes_or_goes_in_mid_run_brings_and_takes_its_part(
    keyless: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 5000)
    file = keyless.folder / "key"
    file.write_text(f"{A}\n")
    keyless.worker(api_key_file=file)
    wait_until(lambda: states(plant_ledger)["succeeded"] > 300, within_s=30, what="the limit is found")
    assert [one.key_id for one in found(plant_ledger, plant_settings)] == [""], "as ever with one key"
    file.write_text(f"{A}\n{B}\n")
    wait_until(lambda: of_key(simulator, B)["in_flight"] >= 10, within_s=15, what="the new key is used")
    Event().wait(5)
    of_a, of_b = watch(simulator, 5)
    assert of_a["rate"] + of_b["rate"] >= 0.8 * 24 / 0.2
    file.write_text(f"{B}\n")
    wait_until(lambda: of_key(simulator, A)["in_flight"] == 0, within_s=10, what="the old key is left")
    Event().wait(5)
    of_a, of_b = watch(simulator, 5)
    assert of_a["calls"] == 0
    assert of_b["rate"] >= 0.8 * 12 / 0.2
    assert len(found(plant_ledger, plant_settings)) == 3


@pytest.mark.full
@pytest.mark.measures
@only_sqlite
@pytest.mark.simulator("--latency", "0.2", "--key", f"{A},{B}", "--refuse-keys-above", "12,12")
def test_a_key_that_is_revoked_in_mid_run_burns_no_attempt_and_lowers_no_limit_of_the_other(
    keyless: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    queue(plant_ledger, plant_settings, 1500)
    keyless.worker(api_keys=f"{A},{B}")
    wait_until(lambda: states(plant_ledger)["succeeded"] > 500, within_s=30, what="the limits are found")
    simulator.set_faults(revoked_keys=A)
    _, of_b = watch(simulator, 5)
    assert of_b["rate"] >= 0.9 * 12 / 0.2
    assert of_b["refused"] <= 0.03 * of_b["calls"]
    wait_until(lambda: states(plant_ledger)["succeeded"] == 1500, within_s=40, what="all jobs end")
    assert burnt(plant_ledger) == 0
    assert_sound(plant_ledger)


@pytest.mark.full
@pytest.mark.measures
@only_sqlite
@pytest.mark.simulator("--latency", "0.2", "--key", f"{A},{B}", "--refuse-keys-above", "4,20")
def test_one_of_two_endpoints_has_several_keys_with_a_limit_each(
    keyless: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    other = SimulatorProcess("--latency", "0.2", "--refuse-above", "10")
    try:
        tables = {
            "keys": {"base_url": simulator.url, "api_keys": [A, B]},
            "other": {"base_url": other.url, "api_key": "k"},
        }
        del keyless.settings["base_url"]
        queue(plant_ledger, plant_settings, 4000)
        keyless.worker(endpoint_tables=json.dumps(tables))
        wait_until(lambda: states(plant_ledger)["succeeded"] > 1000, within_s=40, what="the limits are found")
        before = other.stats()
        of_a, of_b = watch(simulator, 8)
        after = other.stats()
        assert of_a["rate"] + of_b["rate"] >= 0.85 * (4 + 20) / 0.2
        assert of_a["refused"] + of_b["refused"] <= 0.03 * (of_a["calls"] + of_b["calls"])
        assert (after["paid"] - before["paid"]) / 8 >= 0.85 * 10 / 0.2
    finally:
        other.close()
