"""Keys that change, are wrong or are spent, with real workers: no job is lost, no attempt is burnt, no key is seen."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from tests.acceptance.test_workers import queue
from tests.support.audit import assert_sound, states
from tests.support.processes import Shop, SimulatorProcess, end, is_gone, wait_until
from tests.support.scene import PLANTED, is_shown
from worker.policy.gates import PROBE_BASE_S
from worker.settings import Settings
from worker.storage.engine import Ledger
from worker.storage.tables import attempts, jobs

OLD, NEW, THIRD = (f"sk-{PLANTED}-{which}" for which in ("old", "new", "third"))
only_sqlite = pytest.mark.parametrize("plant", ["sqlite"], indirect=True)
Seen = Callable[[], list[str]]


@pytest.fixture
def keyless(plant: Shop) -> Shop:
    """A plant whose workers are told their key by the test."""
    del plant.settings["api_key"]
    return plant


@pytest.fixture
def seen(keyless: Shop, valkey: Any) -> Seen:
    """Where the planted keys can be read: in logs, the ledger, the broker, and the arguments of processes."""

    def look() -> list[str]:
        files = [one for one in keyless.folder.rglob("*") if one.is_file() and not one.name.startswith("key")]
        found = [one.name for one in files if is_shown(one.read_bytes())]
        found += [str(key) for key in valkey.keys("*") if is_shown(valkey.dump(key) or b"")]
        for process in keyless.started:
            if process.poll() is None:
                for one in (known := psutil.Process(process.pid), *known.children(recursive=True)):
                    found += [f"arguments of {one.pid}"] * is_shown(" ".join(one.cmdline()))
        return found

    return look


def burnt(ledger: Ledger) -> int:
    with ledger.read() as connection:
        return len(connection.execute(select(jobs.c.id).where(jobs.c.attempts > 0)).all())


def refused(ledger: Ledger) -> int:
    """Attempts that ended because of a key. They are not burnt."""
    with ledger.read() as connection:
        kinds = ("unauthorized", "quota")
        return len(connection.execute(select(attempts.c.job_id).where(attempts.c.outcome.in_(kinds))).all())


def wait_until_quiet(simulator: SimulatorProcess, *, for_s: float) -> int:
    """Waits until no call has come for so many seconds. The calls until then."""
    calls, since_s = -1, time.monotonic()

    def is_quiet() -> bool:
        nonlocal calls, since_s
        now = simulator.stats()["calls"]
        if now != calls:
            calls, since_s = now, time.monotonic()
        return time.monotonic() - since_s >= for_s

    wait_until(is_quiet, within_s=20, what=f"no call comes for {for_s:g} s")
    return calls


@pytest.mark.default_cases(1)
@only_sqlite
@pytest.mark.slow
@pytest.mark.simulator("--latency", "0.05")
@pytest.mark.parametrize("source", ["file", "command"])
def test_a_key_that_is_rotated_in_the_middle_of_a_thousand_jobs_loses_none_and_burns_no_attempt(
    keyless: Shop,
    plant_ledger: Ledger,
    plant_settings: Settings,
    simulator: SimulatorProcess,
    source: str,
    seen: Seen,
) -> None:
    file = keyless.folder / "key"
    file.write_text(OLD + "\n")
    simulator.set_faults(key=OLD)
    queue(plant_ledger, plant_settings, 1000)
    told = {"api_key_file": file} if source == "file" else {"api_key_command": f"cat {file}"}
    keyless.worker(concurrency=16, **told)

    def wait_for(count: int) -> None:
        wait_until(
            lambda: states(plant_ledger)["succeeded"] >= count, within_s=60, what=f"{count} have ended"
        )

    wait_for(200)
    # The new key is there first, as a careful person does it.
    file.write_text(NEW + "\n")
    simulator.set_faults(key=NEW)
    wait_for(500)
    assert refused(plant_ledger) == 0, (
        "the calls that were refused went on with the new key in the same attempt"
    )
    # The old key ends before the new one is there: the gate shuts for a moment.
    simulator.set_faults(key=THIRD)
    wait_until(lambda: refused(plant_ledger) > 0, within_s=20, what="the gate is shut")
    (keyless.folder / "key.new").write_text(THIRD)
    (keyless.folder / "key.new").rename(file)
    wait_for(1000)
    assert burnt(plant_ledger) == 0
    assert states(plant_ledger) == {"succeeded": 1000}
    assert simulator.stats()["paid"] == 1000
    assert_sound(plant_ledger)
    assert seen() == []


@only_sqlite
@pytest.mark.slow
@pytest.mark.simulator("--latency", "0.05")
def test_a_wrong_key_makes_one_call_a_probe_interval_over_all_workers(
    keyless: Shop, plant_ledger: Ledger, plant_settings: Settings, simulator: SimulatorProcess
) -> None:
    simulator.set_faults(key=NEW)
    queue(plant_ledger, plant_settings, 200)
    for _ in range(2):
        keyless.worker(concurrency=8, api_key=OLD)
    wait_until(lambda: simulator.stats()["refused"].get("401", 0) > 0, within_s=20, what="the key is refused")
    # Then the first calls, of all slots, are over, and so are the probes with jobs that were not refused.
    before = wait_until_quiet(simulator, for_s=1.5 * PROBE_BASE_S)
    time.sleep(10.0)
    assert simulator.stats()["calls"] - before <= 3, (
        "one after 2 s, one after 4 s, and one that was on its way"
    )
    gate = keyless.antrean("status", "--json", api_key=OLD).json["gate"]
    assert (gate["kind"], gate["http_status"]) == ("unauthorized", 401)
    simulator.set_faults(key=OLD)
    wait_until(lambda: states(plant_ledger)["succeeded"] == 200, within_s=60, what="all jobs end")
    assert burnt(plant_ledger) == 0


@pytest.mark.full
@only_sqlite
@pytest.mark.slow
@pytest.mark.simulator("--latency", "0.05")
def test_of_two_workers_one_with_a_refused_key_holds_up_no_job_and_is_named_without_its_key(
    keyless: Shop,
    plant_ledger: Ledger,
    plant_settings: Settings,
    simulator: SimulatorProcess,
    seen: Seen,
) -> None:
    simulator.set_faults(key=NEW)
    file = keyless.folder / "key"
    file.write_text(OLD)
    keyless.worker(concurrency=8, api_key_file=file)
    keyless.worker(concurrency=8, api_key=NEW)
    queue(plant_ledger, plant_settings, 600)
    wait_until(lambda: states(plant_ledger)["succeeded"] == 600, within_s=60, what="all jobs end")
    assert burnt(plant_ledger) == 0
    assert simulator.stats()["refused"]["401"] <= 16 + 8, "both styles in each slot at first, then by probes"

    facts = keyless.antrean("status", "--json", api_key=NEW).json
    assert facts["gate"] is None
    aside = {one["place"]: one["set_aside"] for one in facts["keys"]}
    assert aside["ANTREAN_API_KEY"] is None
    assert aside["ANTREAN_API_KEY_FILE"]["kind"] == "unauthorized"
    [key_id] = [one["id"] for one in facts["keys"] if one["set_aside"]]
    text = keyless.antrean("status", api_key=NEW).out
    assert f"key {key_id} (ANTREAN_API_KEY_FILE) is set aside: unauthorized (HTTP 401) since " in text
    checked = keyless.antrean("check", api_key=NEW)
    assert (checked.code, f"{key_id} (ANTREAN_API_KEY_FILE) is set aside" in checked.out) == (0, True)
    assert not is_shown(json.dumps(facts) + text + checked.out + checked.err)
    assert (
        f'"key": "{key_id}", "place": "ANTREAN_API_KEY_FILE"' in (keyless.folder / "worker.log").read_text()
    )
    assert seen() == []


@only_sqlite
@pytest.mark.simulator("--latency", "0.05")
def test_of_several_keys_a_spent_one_is_set_aside_and_check_says_which_are_refused(
    keyless: Shop,
    plant_ledger: Ledger,
    plant_settings: Settings,
    simulator: SimulatorProcess,
    seen: Seen,
) -> None:
    simulator.set_faults(key=f"{OLD},{NEW}", spent_keys=OLD)
    keys = {"api_keys": f"{OLD},{NEW},{THIRD}"}
    keyless.worker(concurrency=8, **keys)
    queue(plant_ledger, plant_settings, 200)
    wait_until(lambda: states(plant_ledger)["succeeded"] == 200, within_s=40, what="all jobs end")
    assert (burnt(plant_ledger), refused(plant_ledger)) == (0, 0)
    facts = keyless.antrean("status", "--json", **keys).json["keys"]
    assert [(one["place"][-5:], (one["set_aside"] or {}).get("kind")) for one in facts] == [
        ("key 1", "quota"),
        ("key 2", None),
        ("key 3", "unauthorized"),
    ]
    checked = keyless.antrean("check", **keys)
    assert (checked.code, "it refuses ANTREAN_API_KEYS, key 3" in checked.out) == (0, True), checked.out
    assert not is_shown(json.dumps(facts) + checked.out + checked.err)
    assert seen() == []


@only_sqlite
def test_a_command_that_gives_no_key_is_one_sentence_and_an_exit_code(keyless: Shop) -> None:
    told = {"api_key_command": f"sh -c 'echo {OLD}; exit 3'"}
    checked = keyless.antrean("check", **told)
    assert checked.code == 5
    assert (
        "ANTREAN_API_KEY_COMMAND ended with exit code 3; run it in a shell to see what it says" in checked.out
    )
    Path(keyless.folder, "requests.jsonl").write_text(
        json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}]}) + "\n"
    )
    run = keyless.antrean("run", "requests.jsonl", **told)
    assert run.code == 5
    assert "there is no key: ANTREAN_API_KEY_COMMAND ended with exit code 3" in run.err
    assert not is_shown(checked.out + checked.err + run.out + run.err)


def hang(plant: Shop, name: str) -> str:
    """A command that prints no key for a minute; its process is named in the file `name`."""
    return f"sh -c 'echo $$ > {plant.folder}/{name}; exec sleep 60'"


def wait_for_pid(plant: Shop, name: str) -> int:
    file = plant.folder / name
    return int(wait_until(lambda: file.exists() and file.read_text().strip(), within_s=20, what=name))


@only_sqlite
def test_ctrl_c_waits_for_no_command_that_is_asked_for_the_keys_of_several_endpoints(keyless: Shop) -> None:
    del keyless.settings["base_url"]
    tables = {
        name: {"base_url": f"http://127.0.0.{i}:9", "api_key_command": hang(keyless, name)}
        for i, name in enumerate(("east", "west"), start=1)
    }
    told = {"endpoint_tables": json.dumps(tables), "api_key_command_timeout_s": 60}
    check = keyless.begin("worker.cli", "check", **told)
    pids = [wait_for_pid(keyless, name) for name in tables]
    code, took_s = end(check, signal.SIGINT)
    assert (code, took_s < 5) == (130, True), (code, took_s)
    wait_until(lambda: all(map(is_gone, pids)), within_s=5, what="the commands have ended")


@only_sqlite
def test_a_worker_that_is_stopped_does_not_wait_its_grace_for_the_command_of_its_key(
    keyless: Shop, plant_ledger: Ledger, plant_settings: Settings
) -> None:
    queue(plant_ledger, plant_settings, 1)
    told = {"api_key_command": hang(keyless, "pid"), "api_key_command_timeout_s": 60, "grace_s": 30}
    worker = keyless.worker(**told)
    pid = wait_for_pid(keyless, "pid")
    code, took_s = end(worker, signal.SIGINT)
    assert (code, took_s < 10) == (0, True), (code, took_s)
    wait_until(lambda: is_gone(pid), within_s=5, what="the command has ended")
    assert states(plant_ledger)["queued"] == 1
