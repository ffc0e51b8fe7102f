"""`antrean doctor` beside a running worker, and on a ledger that somebody laid hands on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from schemas.chat import parse_request
from tests.support.processes import ROOT, Shop, wait_until
from worker.cli.doctor_words import MEANINGS
from worker.clock import SystemClock
from worker.intake.submit import make_job, submit_many
from worker.settings import Settings
from worker.storage.engine import Ledger
from worker.storage.tables import jobs, results, usage


def queue(ledger: Ledger, settings: Settings, count: int) -> None:
    submit_many(
        ledger,
        (
            make_job(
                parse_request(
                    {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": f"Tell {i}."}]}
                ),
                endpoint=settings.endpoint,
                batch_id="batch_x",
                position=i + 1,
                is_bulk=True,
            )
            for i in range(count)
        ),
        clock=SystemClock(),
    )


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.simulator("--latency", "0.5", "--fault-rate", "0.2", "--seed", "1")
def test_a_sound_ledger_under_a_running_worker_gives_no_finding_and_repair_changes_nothing(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings
) -> None:
    queue(plant_ledger, plant_settings, 80)

    def ended() -> int:
        with plant_ledger.read() as connection:
            return len(connection.execute(select(jobs.c.id).where(jobs.c.ended_at_ms.is_not(None))).all())

    plant.worker(concurrency=8, backoff_base_s=0.2)
    wait_until(lambda: ended() > 8, within_s=30, what="the run is in its middle")
    looks = 0
    while ended() < 80:
        for options in ((), ("--repair",)):
            found = plant.antrean("doctor", "--json", *options)
            assert (found.code, found.json["findings"]) == (0, []), found.err
            looks += 1
    assert looks >= 2
    calls = plant.antrean("doctor")
    assert (calls.code, calls.out) == (0, "nothing is wrong\n")
    with plant_ledger.read() as connection:
        states = set(connection.execute(select(jobs.c.state, jobs.c.losses)).all())
    assert states == {("succeeded", 0)}, "no claim was taken from the living"


def test_what_was_laid_hands_on_is_named_repaired_and_the_rest_left_to_a_person(
    plant: Shop, plant_ledger: Ledger, plant_settings: Settings
) -> None:
    queue(plant_ledger, plant_settings, 3)
    plant.worker(concurrency=4)
    wait_until(
        lambda: plant.antrean("status", "--json").json["jobs"]["succeeded"] == 3, within_s=30, what="all end"
    )
    with plant_ledger.write() as connection:
        first, second, third = connection.execute(select(jobs.c.id).order_by(jobs.c.id)).scalars()
        connection.execute(delete(usage).where(usage.c.job_id == first))
        connection.execute(delete(results).where(results.c.job_id == second))
        connection.execute(update(jobs).where(jobs.c.id == third).values(ended_at_ms=None))

    told = plant.antrean("doctor")
    assert told.code == 1
    for name, id_ in (("result_without_usage", first), ("success_without_result", second)):
        assert re.search(rf"^{name}: 1, .*\n  .*\n  {id_}$", told.out, re.MULTILINE), told.out
    assert "antrean doctor --repair" in told.err
    done = plant.antrean("doctor", "--repair", "--json")
    assert done.code == 1
    facts = {one["name"]: (one["count"], one["repaired"], one["remaining"]) for one in done.json["findings"]}
    assert facts == {
        "success_without_result": (1, 0, 1),
        "usage_without_result": (1, 1, 0),
        "result_without_usage": (1, 1, 0),
        "ended_without_time": (1, 1, 0),
    }
    assert plant.antrean("doctor", "--repair", "--json").json["findings"][0]["examples"] == [second]
    assert "Tell" not in told.out + told.err + done.out + done.err


def test_where_there_is_no_ledger_none_is_made(shop: Shop, folder: Path) -> None:
    found = shop.antrean("doctor")
    assert (found.code, found.out) == (4, "")
    assert "there is no ledger" in found.err
    assert not (folder / ".antrean" / "antrean.db").exists()


def test_the_page_names_every_finding() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    section = page.split("## `antrean doctor`", 1)[1].split("\n## ", 1)[0]
    named = re.findall(r"^\| `([a-z_]+)`", section, re.MULTILINE)
    assert set(named) == set(MEANINGS)
