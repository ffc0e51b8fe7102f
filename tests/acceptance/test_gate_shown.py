"""A shut gate and a pause are shown with their end, and whoever has an answer of the endpoint wakes those who wait."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from sqlalchemy import update

from schemas.chat import parse_request
from schemas.failure import FailureKind
from tests.support.ledger import claim, job_row, put, record, setback
from tests.support.processes import Shop, wait_until
from worker.broker.client import broker_address, open_client
from worker.clock import SystemClock
from worker.intake.submit import make_job
from worker.policy.gates import Gate
from worker.settings import Settings
from worker.storage.engine import Ledger
from worker.storage.tables import jobs
from worker.throttle.redis_store import RedisGateStore

REQUEST = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": "Hello"}]}
ENDS = r"until \d\d:\d\d:\d\d, in \d+ s"

only_sqlite = pytest.mark.parametrize("plant", ["sqlite"], indirect=True)


def shut(settings: Settings, ledger: Ledger, *, needs_probe: bool, since_s: int | None = None) -> str:
    """Has the gate shut for 45 s, and one job wait at it; the job's id."""
    store = RedisGateStore(open_client(broker_address(settings)), settings.endpoint)
    now_ms = SystemClock().now_ms()
    kind = FailureKind.SERVER_ERROR if needs_probe else FailureKind.RATE_LIMITED
    gate = Gate(
        kind, now_ms + 45_000, 3, needs_probe, wait_ms=45_000, struck_ms=now_ms - 2000, http_status=503
    )
    store.put(gate if since_s is None else replace(gate, since_ms=now_ms - since_s * 1000))
    id_ = put(ledger, make_job(parse_request(REQUEST), endpoint=settings.endpoint))[0].id
    job = claim(ledger, id_, endpoint=settings.endpoint, now_ms=now_ms)[id_]
    record(ledger, setback(job, kind=kind, not_before_ms=now_ms + 45_000, burns=False, is_blocked=True))
    return id_


@only_sqlite
def test_a_shut_gate_is_shown_with_its_end_and_check_wakes_those_who_wait(
    plant: Shop, plant_settings: Settings, plant_ledger: Ledger
) -> None:
    id_ = shut(plant_settings, plant_ledger, needs_probe=True)
    text = plant.antrean("status").out
    assert re.search(rf"server_error \(HTTP 503\): no job is called {ENDS}", text), text
    assert re.search(rf"waiting server_error \(HTTP 503\): no \({ENDS}\)", text), text
    facts = plant.antrean("status", "--json").json
    assert (facts["gate"]["kind"], facts["gate"]["http_status"], facts["gate"]["needs_probe"]) == (
        "server_error",
        503,
        True,
    )
    assert 0 < facts["gate"]["in_s"] <= 45
    assert re.search(ENDS, facts["waiting_for"])

    before_ms = SystemClock().now_ms()
    checked = plant.antrean("check", "--json")
    assert (checked.code, checked.json["gate"]["kind"]) == (0, "server_error")
    [said] = [one["detail"] for one in checked.json["checks"] if one["name"] == "gate"]
    assert re.search(rf"{ENDS}.* it is tried again now", said), said
    assert before_ms <= job_row(plant_ledger, id_).not_before_ms <= SystemClock().now_ms() + 1000
    again = plant.antrean("status", "--json").json["gate"]
    assert again["in_s"] == 0, "the next probe may go at once, and the gate is no more open than before"
    assert "the next job tests whether it is over" in plant.antrean("status").out


@only_sqlite
def test_a_pause_that_the_endpoint_asked_for_is_shown_and_kept(
    plant: Shop, plant_settings: Settings, plant_ledger: Ledger
) -> None:
    id_ = shut(plant_settings, plant_ledger, needs_probe=False)
    due_ms = job_row(plant_ledger, id_).not_before_ms
    said = plant.antrean("check").out
    assert re.search(rf"rate_limited \(HTTP 503\): the endpoint asked everyone to wait {ENDS}", said), said
    assert job_row(plant_ledger, id_).not_before_ms == due_ms
    facts = plant.antrean("status", "--json").json["gate"]
    assert (facts["needs_probe"], facts["in_s"] > 0) == (False, True)


@pytest.mark.full
@only_sqlite
def test_a_worker_goes_on_at_once_when_check_had_an_answer(
    plant: Shop, plant_settings: Settings, plant_ledger: Ledger
) -> None:
    id_ = shut(plant_settings, plant_ledger, needs_probe=True)
    far_ms = SystemClock().now_ms() + 600_000
    plant_ledger.run(lambda c: c.execute(update(jobs).where(jobs.c.id == id_).values(not_before_ms=far_ms)))
    plant.worker()
    assert plant.antrean("check").code == 0
    wait_until(
        lambda: job_row(plant_ledger, id_).state == "succeeded",
        within_s=10,
        what="the job is done, 590 s before its time",
    )


@only_sqlite
def test_nothing_is_said_of_a_gate_that_is_open(plant: Shop) -> None:
    assert plant.antrean("status", "--json").json["gate"] is None
    checked = plant.antrean("check", "--json").json
    assert checked["gate"] is None
    assert [one["name"] for one in checked["checks"]] == [
        "settings",
        "slots",
        "broker",
        "database",
        "endpoint and key",
        "model",
    ]


@only_sqlite
def test_a_gate_is_told_in_one_line_and_opened_by_hand(
    plant: Shop, plant_settings: Settings, plant_ledger: Ledger
) -> None:
    assert plant.antrean("gate").out.strip() == "the gate is open"
    assert plant.antrean("gate", "open").out.strip().startswith("the gate is open")
    id_ = shut(plant_settings, plant_ledger, needs_probe=True, since_s=90)
    line = rf"server_error \(HTTP 503\) since \d\d:\d\d:\d\d: no \({ENDS}\)\n"
    assert re.fullmatch(line, plant.antrean("gate").out)
    assert re.search(f"waiting {line}", plant.antrean("status").out)
    facts = plant.antrean("gate", "--json").json
    assert (facts["opened"], facts["woken"], facts["gate"]["needs_probe"]) == (False, 0, True)
    assert facts["gate"]["since"] < facts["gate"]["until"]
    opened = plant.antrean("gate", "open")
    assert "it is open now" in opened.out and "1 job waited at it" in opened.out
    assert job_row(plant_ledger, id_).not_before_ms <= SystemClock().now_ms() + 1000
    assert plant.antrean("gate", "--json").json["gate"] is None
    shut(plant_settings, plant_ledger, needs_probe=False)
    assert plant.antrean("gate", "open", "--json").json["gate"]["kind"] == "rate_limited"
    assert plant.antrean("gate").out.strip() == "the gate is open"


@only_sqlite
def test_the_words_of_a_gate_are_shown_of_a_batch(
    plant: Shop, plant_settings: Settings, plant_ledger: Ledger
) -> None:
    batch_id = make_batch_of(plant, plant_ledger)
    shut(plant_settings, plant_ledger, needs_probe=True, since_s=90)
    text = plant.antrean("status", batch_id).out
    assert re.search(rf"waiting server_error \(HTTP 503\) since [\d:]+: no \({ENDS}\)", text), text


def make_batch_of(plant: Shop, ledger: Ledger) -> str:
    """The id of a batch with one job that waits."""
    (plant.folder / "requests.jsonl").write_text(json.dumps(REQUEST) + "\n")
    return str(plant.antrean("submit", "requests.jsonl", "--no-check", "--json").json["batch_id"])
