"""Messages that are none of ours: they end no worker, and those of another app are kept and given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from tests.acceptance.test_producers import REQUEST, fetch_job
from tests.support.audit import states
from tests.support.processes import Shop, wait_until
from worker.storage.engine import Ledger


def test_what_is_no_message_neither_ends_the_worker_nor_stops_the_others(
    plant: Shop, plant_ledger: Ledger, send: Callable[..., str], valkey: Any
) -> None:
    worker = plant.worker()
    for raw in (b"not json", b"\xff\xfe", b"5", b'{"a":1}', b'["x","y"]', b'{"body":"%%%","headers":{}}'):
        valkey.lpush("celery", raw)
    bad_time = send(request=REQUEST, options={"headers": {"eta": "the secret plan"}})
    good = send(request=REQUEST)
    wait_until(lambda: fetch_job(plant_ledger, good), within_s=20, what="the good one is a row")
    wait_until(lambda: fetch_job(plant_ledger, good).state == "succeeded", within_s=20, what="it is done")
    assert worker.poll() is None
    assert fetch_job(plant_ledger, bad_time).failure_kind == "invalid_request"
    assert "secret plan" not in (plant.folder / "worker.log").read_text()


@pytest.mark.slow
@pytest.mark.both_databases
def test_tasks_of_another_app_on_our_queue_are_kept_told_and_given_back(
    plant: Shop, plant_ledger: Ledger, send: Callable[..., str], foreign: Celery, valkey: Any
) -> None:
    """Neither dropped nor passed round: two workers set each aside once, and the way back is a command."""
    workers = [plant.worker(), plant.worker()]
    theirs = [foreign.send_task("their.task", args=[i], priority=i % 2 * 6).id for i in range(25)]
    good = send(request=REQUEST)
    wait_until(
        lambda: valkey.llen("celery") == valkey.llen("celery\x06\x166") == 0, within_s=20, what="all are read"
    )
    wait_until(lambda: states(plant_ledger)["succeeded"] == 1, within_s=20, what="ours is served")
    assert states(plant_ledger) == {"succeeded": 1}
    assert fetch_job(plant_ledger, good) is not None
    doctor = plant.antrean("doctor", "--json")
    [finding] = doctor.json["findings"]
    assert (doctor.code, finding["name"], finding["count"]) == (1, "set_aside", 25)
    assert (finding["examples"], finding["is_repairable"]) == (["their.task"], False)
    assert "antrean give-back" in finding["meaning"]
    refused = plant.antrean("give-back")
    assert (refused.code, "2 workers" in refused.err) == (2, True)
    assert [worker.poll() for worker in workers] == [None, None]
    assert plant.antrean("give-back", "--queue", "theirs").out == "25 messages put back on theirs\n"
    assert plant.antrean("doctor").code == 0
    found = []
    with foreign.connection() as connection, connection.SimpleQueue("theirs") as queue:
        for _ in range(25):
            message = queue.get(timeout=5)
            found.append(message.headers["id"])
            message.ack()
    assert sorted(found) == sorted(theirs)
    assert set(found[:13]) == set(theirs[::2]), "the most urgent first"


def test_what_was_set_aside_goes_back_to_where_it_lay_once_nobody_reads_it(
    plant: Shop, plant_ledger: Ledger, foreign: Celery, valkey: Any
) -> None:
    worker = plant.worker()
    foreign.send_task("their.task")
    wait_until(lambda: valkey.llen("celery") == 0, within_s=20, what="it is read")
    worker.terminate()
    assert worker.wait(20) == 0
    assert plant.antrean("give-back", "--json").json == {"messages": 1, "queue": None}
    assert valkey.llen("celery") == 1
    assert "nothing was set aside" in plant.antrean("give-back").err
