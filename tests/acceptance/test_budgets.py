"""A batch with a budget or a deadline, done by real workers, also by one that is killed on the way."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.acceptance.test_commands_more import status
from tests.support.audit import assert_sound, states
from tests.support.ledger import rows
from tests.support.processes import Shop, SimulatorProcess, end, wait_until
from worker.storage.engine import Ledger

WORDS = "one two three four five six seven eight nine ten " * 12
PROMPT_BYTES = 900  # of a whole body, at most
MOST_COMPLETION = 40


def write_requests(shop: Shop, count: int) -> None:
    with (shop.folder / "requests.jsonl").open("w") as file:
        for i in range(count):
            body = {
                "model": "DeepSeek-V3.1",
                "max_tokens": MOST_COMPLETION,
                "messages": [{"role": "user", "content": f"{i} {WORDS}"}],
            }
            line = {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def submit(shop: Shop, *options: str) -> str:
    done = shop.antrean("submit", "requests.jsonl", "--json", *options)
    assert done.code == 0, done.err
    return str(done.json["batch_id"])


def spent(ledger: Ledger) -> int:
    return sum(usage.total_tokens for usage in rows(ledger, "usage"))


def wait_until_at_budget(shop: Shop, batch: str, ledger: Ledger) -> dict[str, Any]:
    def found() -> dict[str, Any]:
        return dict(status(shop, batch)["budget"])

    def is_reached() -> bool:
        if states(ledger)["running"]:
            return False
        now = found()
        return now["waits_since"] is not None and not now["reserved_tokens"]

    wait_until(is_reached, within_s=80, what="the batch waits at its budget, and no call is in flight")
    return found()


@pytest.mark.slow
@pytest.mark.both_databases
@pytest.mark.simulator("--latency", "0.2")
def test_a_budget_of_100000_tokens_over_1000_jobs_in_64_slots_is_never_passed_also_after_a_kill_9(
    plant: Shop, plant_ledger: Ledger, simulator: SimulatorProcess
) -> None:
    write_requests(plant, 1000)
    batch = submit(plant, "--budget", "100000tok")
    plant.worker(concurrency=32)
    killed = plant.worker(concurrency=32)
    wait_until(lambda: states(plant_ledger)["succeeded"] > 150, within_s=40, what="the run is in its middle")
    end(killed, signal.SIGKILL)
    plant.worker(concurrency=32)
    first = wait_until_at_budget(plant, batch, plant_ledger)
    assert first["spent_tokens"] == spent(plant_ledger)
    assert 100_000 - PROMPT_BYTES - MOST_COMPLETION < spent(plant_ledger) <= 100_000
    told = plant.antrean("status", batch).out
    assert "at its budget" in told and f"`antrean budget {batch} AMOUNT` raises it" in told
    assert ", at its budget" in plant.antrean("batches").out
    done = states(plant_ledger)["succeeded"]
    raised = plant.antrean("budget", batch, "120000tok", "--json")
    assert raised.json["budget"]["waits_since"] is None
    wait_until(lambda: states(plant_ledger)["succeeded"] > done, within_s=20, what="it goes on")
    wait_until_at_budget(plant, batch, plant_ledger)
    assert 120_000 - PROMPT_BYTES - MOST_COMPLETION < spent(plant_ledger) <= 120_000
    plant.antrean("budget", batch, "none")
    wait_until(lambda: states(plant_ledger)["succeeded"] == 1000, within_s=60, what="all jobs end")
    assert_sound(plant_ledger)


@pytest.mark.simulator("--latency", "0.1")
def test_a_budget_in_dollars_needs_prices_and_holds(plant: Shop, plant_ledger: Ledger) -> None:
    write_requests(plant, 40)
    refused = plant.antrean("submit", "requests.jsonl", "--budget", "1usd")
    assert refused.code == 2
    assert "a budget in dollars needs the price of DeepSeek-V3.1" in refused.err
    prices = plant.folder / "prices.toml"
    prices.write_text('[models."DeepSeek-*"]\ninput = 1\noutput = 2\n')  # one and two microdollars a token
    plant.settings["prices_file"] = prices
    batch = submit(plant, "--budget", "$0.004")
    plant.worker(concurrency=16)
    wait_until_at_budget(plant, batch, plant_ledger)
    costs = [usage.cost_nano for usage in rows(plant_ledger, "usage")]
    assert 0 < sum(costs) <= 4_000_000 < sum(costs) + 1_000 * PROMPT_BYTES + 2_000 * MOST_COMPLETION
    found = status(plant, batch)
    assert found["usage"]["cost_usd"] == sum(costs) / 1e9 == found["budget"]["spent_usd"]
    [group] = plant.antrean("usage", "--json").json["groups"]
    assert (group["cost_usd"], group["unpriced_answers"]) == (sum(costs) / 1e9, 0)


@pytest.mark.simulator("--latency", "1.0")
def test_after_its_deadline_no_job_of_a_batch_is_called(
    plant: Shop, plant_ledger: Ledger, simulator: SimulatorProcess
) -> None:
    write_requests(plant, 200)
    plant.worker(concurrency=4)
    wait_until(lambda: bool(plant.antrean("workers", "--json").json["workers"]), within_s=30, what="it is up")
    batch = submit(plant, "--deadline", "4s")
    wait_until(lambda: status(plant, batch)["status"] != "in_progress", within_s=30, what="all jobs end")
    counts = status(plant, batch)["jobs"]
    assert counts["expired"] + counts["succeeded"] == 200
    assert counts["expired"] >= 150
    assert simulator.stats()["paid"] == counts["succeeded"]
    deadline = status(plant, batch)["deadline"]
    assert deadline is not None
    with plant_ledger.read() as connection:
        late = connection.exec_driver_sql(
            "SELECT count(*) FROM attempts JOIN jobs ON jobs.id = attempts.job_id"
            " WHERE attempts.started_at_ms > jobs.expires_at_ms"
        ).scalar()
    assert late == 0
    # What was answered tells when more of the same would end, and that the deadline comes before.
    more = plant.antrean("submit", "requests.jsonl", "--again", "--deadline", "3s", "--json")
    assert more.json["expected_end"] > more.json["deadline"]
    assert more.json["misses_deadline"] is True
    again = plant.antrean("submit", "requests.jsonl", "--again", "--deadline", "9d")
    assert "likely to end at " in again.err
    assert "warning: the deadline" not in again.err


@pytest.mark.simulator("--latency", "0.05")
def test_a_run_at_its_budget_says_so_and_goes_on_when_it_is_raised(plant: Shop, plant_ledger: Ledger) -> None:
    write_requests(plant, 30)
    log = plant.folder / "run.log"
    command = ("worker.cli", "run", "requests.jsonl", "-o", "out.jsonl", "--no-check", "--budget", "2500tok")
    run = plant.begin(*command, log="run.log", concurrency=8)
    said = "waiting: the batch is at its budget: "
    wait_until(
        lambda: log.exists() and said in log.read_text(), within_s=60, what="the run says why it waits"
    )
    assert run.poll() is None
    [batch] = rows(plant_ledger, "batches")
    assert spent(plant_ledger) <= 2500
    assert plant.antrean("budget", batch.id, "none").code == 0
    assert run.wait(60) == 0
    assert len((plant.folder / "out.jsonl").read_text().splitlines()) == 30
    assert "cost unknown" in log.read_text()
