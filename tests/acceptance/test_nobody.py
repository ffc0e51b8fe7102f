"""Commands that queue and leave say when nobody works on what they queued."""

from __future__ import annotations

import signal

import pytest

from tests.acceptance.test_commands_more import status, submit
from tests.support.processes import Shop, end, wait_until


@pytest.mark.slow
@pytest.mark.simulator("--latency", "0.01", "--rate-500", "1")
def test_who_queues_is_told_when_no_worker_lives(plant: Shop) -> None:
    endpoint = plant.settings["endpoint_name"]
    nobody = f"no worker lives for {endpoint}: `antrean worker` starts one"
    batch = submit(plant, 2)
    assert nobody in plant.antrean("submit", "requests.jsonl").err, "they still wait"
    worker = plant.worker(max_attempts=1)
    wait_until(lambda: status(plant, batch)["status"] == "completed", within_s=20, what="both failed")
    assert "no worker" not in plant.antrean("submit", "requests.jsonl").err, "it is done"
    submitted = plant.antrean("submit", "requests.jsonl", "--again", "--json")
    assert submitted.json["is_worked_on"] is True
    assert end(worker)[0] == 0

    retried = plant.antrean("retry", batch, "--failed")
    assert nobody in retried.err
    assert plant.antrean("retry", batch, "--failed").err == "", "nothing was queued"
    other = plant.antrean("submit", "requests.jsonl", "--again", endpoint_name="other")
    assert "no worker lives for other: `antrean worker` starts one" in other.err
    elsewhere = plant.antrean("retry", batch, "--kind", "server_error", "--json", endpoint_name="other")
    assert (elsewhere.json["queued"], elsewhere.json["is_worked_on"]) == (0, False)


@pytest.mark.full
@pytest.mark.slow
def test_a_worker_that_was_killed_is_nobody_and_a_pause_is_named(plant: Shop) -> None:
    worker = plant.worker()
    submit(plant, 1)
    plant.antrean("pause", "it moves")
    paused = plant.antrean("submit", "requests.jsonl", "--again")
    assert "is paused (it moves): `antrean resume` goes on" in paused.err
    assert "no worker lives" not in plant.antrean("resume").err
    worker.send_signal(signal.SIGKILL)
    worker.wait(10)
    plant.antrean("pause")
    wait_until(lambda: "no worker lives" in _resume(plant), within_s=20, what="its leases are over")


def _resume(plant: Shop) -> str:
    plant.antrean("pause")
    return plant.antrean("resume").err
