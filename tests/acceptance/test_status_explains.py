"""`antrean status` says why jobs wait, who could work on them, how old the oldest call is, and which ledger it is."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.acceptance.test_commands_more import submit
from tests.support.processes import Shop, end, wait_until

only_sqlite = pytest.mark.parametrize("plant", ["sqlite"], indirect=True)


@only_sqlite
@pytest.mark.simulator("--latency", "30")
def test_status_says_why_jobs_wait_from_the_first_to_the_last(plant: Shop) -> None:
    batch, endpoint = submit(plant, 3), plant.settings["endpoint_name"]
    place = str(plant.folder / "plant.db")
    for asked in ((), (batch,)):
        told = plant.antrean("status", *asked).out
        assert told.startswith(f"ledger {place}\n")
        assert f"waiting 3 jobs: no worker lives for {endpoint}; `antrean worker`" in told
        facts = plant.antrean("status", *asked, "--json").json
        assert (facts["ledger"], facts["workers"], facts["oldest_call"]) == (place, [], None)
        assert [(one["why"], one["jobs"]) for one in facts["waiting"]] == [("no_worker", 3)]

    worker = plant.worker(concurrency=1, lone_slots=0, grace_s=0)
    wait_until(
        lambda: plant.antrean("status", batch, "--json").json["oldest_call"] is not None,
        within_s=20,
        what="a call is made",
    )
    told = plant.antrean("status", batch).out
    assert re.search(rf"waiting \d jobs? for a free slot: the slot of {endpoint} in use", told), told
    assert re.search(rf"oldest call: [\d.]+ s, job \S+, by \S+:{worker.pid}\n", told), told
    plant.antrean("pause", "moved")
    told = plant.antrean("status", batch).out
    assert re.search(rf"waiting \d jobs? for {endpoint}, which is paused: `antrean resume` goes on", told)
    end(worker)


@only_sqlite
@pytest.mark.simulator("--latency", "0.05")
def test_status_tells_calls_from_jobs_that_wait_for_a_limit_of_a_minute(plant: Shop) -> None:
    batch, endpoint = submit(plant, 9), plant.settings["endpoint_name"]
    assert plant.antrean("limits", "set", "--requests-per-minute", "3").code == 0
    plant.worker(concurrency=4, lone_slots=0)

    def fetch_waiting() -> dict[str, Any] | None:
        facts: dict[str, Any] = plant.antrean("status", batch, "--json").json
        return facts if facts["jobs"]["succeeded"] and facts["workers"][0]["calls"] == 0 else None

    facts = wait_until(fetch_waiting, within_s=20, what="no other call may begin yet")
    assert (facts["oldest_call"], facts["jobs"]["running"] > 0) == (None, True)
    assert [one["why"] for one in facts["waiting"]] == ["limit"]
    told = plant.antrean("status", batch).out
    said = f"for their turn at {endpoint}, which is limited to 3 requests a minute (set)"
    assert said in told and "oldest call" not in told, told
    assert re.search(r"\d more jobs? in hand", plant.antrean("workers").out)


@only_sqlite
@pytest.mark.simulator("--latency", "0.01", "--rate-500", "1")
def test_status_says_when_the_next_try_is_due(plant: Shop) -> None:
    batch = submit(plant, 1)
    plant.worker(backoff_base_s=300, backoff_cap_s=600)
    wait_until(
        lambda: plant.antrean("status", batch, "--json").json["waiting"],
        within_s=20,
        what="the first try has failed",
    )
    told = plant.antrean("status", batch).out
    pattern = (
        r"waiting 1 job for the next attempt after server_error: the first at \d\d:\d\d:\d\d, in [\d,]+ s"
    )
    assert re.search(pattern, told), told


def test_a_healthy_check_without_a_worker_has_nothing_to_say_but_that_all_is_well(shop: Shop) -> None:
    done = shop.antrean("check")
    assert done.code == 0
    assert done.err.startswith("requests go to http") and done.err.count("\n") == 1
    assert "gate" not in done.out
