"""`antrean jobs`, `show` by the beginning of an id or by name, and the results of lone jobs, at a terminal."""

from __future__ import annotations

import csv
import io
import json
import sqlite3

import pytest

from tests.acceptance.test_commands_more import status, submit
from tests.acceptance.test_producers import REQUEST
from tests.support.ledger import put_one
from tests.support.processes import Shop, end, wait_until
from worker.errors import ExitCode
from worker.settings import load_settings
from worker.storage.engine import Ledger

BODY = json.dumps(REQUEST)


@pytest.mark.simulator("--latency", "0.01")
def test_jobs_are_listed_and_exported_with_what_was_asked_and_answered(
    plant: Shop, plant_ledger: Ledger
) -> None:
    endpoint = load_settings(**plant.settings, _env_file=None).endpoint
    batch = submit(plant, 3)
    lone = put_one(plant_ledger, endpoint=endpoint, body=BODY, custom_id="=alone")
    bad = put_one(plant_ledger, endpoint=endpoint, body="{")
    worker = plant.worker()
    wait_until(lambda: status(plant, batch)["status"] == "completed", within_s=20, what="the batch is done")
    wait_until(
        lambda: (
            plant.antrean("jobs", "--lone", "--state", "succeeded", "--state", "failed", "--csv").out.count(
                "\n"
            )
            == 3
        ),
        within_s=20,
        what="the lone jobs have ended",
    )
    assert end(worker)[0] == 0

    listed = plant.antrean("jobs", batch, "--json", "--with", "prompt,answer").json["jobs"]
    assert [job["custom_id"] for job in listed] == ["c0", "c1", "c2"]
    assert [job["prompt"][0]["content"] for job in listed] == [f"Say {i} requests.jsonl." for i in range(3)]
    assert all(job["answer"] and job["latency_s"] > 0 and job["state"] == "succeeded" for job in listed)
    rows = list(
        csv.DictReader(io.StringIO(plant.antrean("jobs", "--lone", "--csv", "--with", "answer,error").out))
    )
    assert [(row["job_id"], row["custom_id"], row["state"]) for row in rows] == [
        (bad, "", "failed"),
        (lone, "'=alone", "succeeded"),
    ]
    assert rows[0]["error"]
    assert rows[1]["answer"]

    shown = plant.antrean("jobs", "--state", "failed", "--with", "error")
    assert (shown.code, shown.out.splitlines()[0]) == (0, f"{bad}  failed")
    assert "    " + rows[0]["error"].splitlines()[0] in shown.out
    assert "Say 0" not in plant.antrean("jobs", batch).out

    results = plant.antrean("results", "--lone")
    lines = [json.loads(line) for line in results.out.splitlines()]
    assert [(line["custom_id"], line["response"]["status_code"]) for line in lines] == [
        ("=alone", 200),
        (bad, 400),
    ]
    assert plant.antrean("results", "--lone", "-o", "lone.jsonl").code == 0
    assert (plant.folder / "lone.jsonl").read_text() == results.out


def test_the_screen_shows_fifty_jobs_and_says_where_the_others_are(shop: Shop) -> None:
    batch = submit(shop, 60)
    shown = shop.antrean("jobs", batch)
    assert (shown.out.count("  queued\n"), "c0 ·" in shown.out, "c50 ·" in shown.out) == (50, True, False)
    assert "more than these 50" in shown.err
    assert shop.antrean("jobs", batch, "-n", "60").err == ""
    assert len(shop.antrean("jobs", batch, "--json").json["jobs"]) == 60
    assert len(shop.antrean("jobs", "--json", "-n", "7").json["jobs"]) == 7
    nothing = shop.antrean("jobs", "--state", "expired")
    assert (nothing.code, nothing.out, "no job fits" in nothing.err) == (0, "", True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--lone", "batch_no"), "a lone job is of no batch"),
        (("batch_no_such_one",), "there is no batch batch_no_such_one"),
        (("--json", "--csv"), "do not go together"),
        (("--with", "reasoning"), "knows no text named reasoning"),
        (("--with", ","), "knows no text named nothing"),
        (("--kind", "no\x1b[2J"), "is no kind of failure; the kinds are: bad_response"),
        (("--state", "done"), "'done' is not one of"),
    ],
)
def test_a_list_that_cannot_be_made_is_a_sentence(
    shop: Shop, arguments: tuple[str, ...], sentence: str
) -> None:
    done = shop.antrean("jobs", *arguments)
    assert (done.code, done.out) == (int(ExitCode.USAGE), "")
    assert sentence in done.err
    assert "\x1b[2J" not in done.err


def test_what_a_producer_wrote_steers_no_terminal(shop: Shop) -> None:
    submit(shop, 1)
    with sqlite3.connect(shop.folder / ".antrean" / "antrean.db") as connection:
        connection.execute(
            "UPDATE jobs SET custom_id = ?, model = ?, state = 'failed', failure_message = ?",
            ("[/nope]\x1b[2J", "[bold]m\u202e", "a\x9bb\nline two"),
        )
        connection.execute("UPDATE requests SET body = ?", (json.dumps({"messages": "[red]\x07"}),))
    connection.close()
    done = shop.antrean("jobs", "--with", "prompt,error")
    assert done.code == 0
    assert "[/nope]\\x1b[2J · " in done.out
    assert "[bold]m\\u202e" in done.out
    assert "    a\\x9bb\n    line two\n" in done.out
    assert "    [red]\\x07\n" in done.out


def test_the_beginning_of_an_id_is_enough_to_look_and_several_are_listed(shop: Shop) -> None:
    batch = submit(shop, 3)
    ids = [job["job_id"] for job in shop.antrean("jobs", batch, "--json").json["jobs"]]
    unique = next(ids[2][:n] for n in range(1, 37) if sum(id_.startswith(ids[2][:n]) for id_ in ids) == 1)
    start = ids[0][:8]  # of a minute
    assert shop.antrean("show", unique, "--json").json["id"] == ids[2]
    line_id = "batch_req_" + unique.replace("-", "")
    assert shop.antrean("show", line_id, "--json").json["id"] == ids[2]
    several = shop.antrean("show", start)
    assert (several.code, several.out) == (2, "")
    assert f"there are 3 ids that begin with {start}; say which" in several.err
    assert all(f"{id_}  queued" in several.err for id_ in ids)
    assert "is a batch" in shop.antrean("show", batch[:20]).err
    for nothing in ("", "zz", "batch_req_", "batch_req_zz", "%", "x" * 3_000):
        refused = shop.antrean("show", nothing)
        assert (refused.code, refused.out) == (2, "")
        assert "there is no job" in refused.err
    # To end something, an id is to be given whole.
    assert shop.antrean("cancel", unique).code == 2


def test_a_job_is_shown_by_its_name_and_a_name_of_several_is_listed(shop: Shop) -> None:
    first, second = submit(shop, 2), submit(shop, 3, "more.jsonl")
    only = shop.antrean("show", "--custom-id", "c2", "--json").json
    assert (only["batch_id"], only["custom_id"]) == (second, "c2")
    several = shop.antrean("show", "--custom-id", "c1")
    assert several.code == 2
    assert "there are 2 jobs named c1; say which" in several.err
    assert first in several.err and second in several.err
    assert shop.antrean("show", "--custom-id", "c1", "--batch", first, "--json").json["batch_id"] == first
    nothing = shop.antrean("show", "--custom-id", "c2", "--batch", first)
    assert (nothing.code, f"no job has the custom_id c2 in {first}" in nothing.err) == (2, True)
    for wrong in (("show",), ("show", "x", "--custom-id", "c1"), ("show", "x", "--batch", first)):
        assert shop.antrean(*wrong).code == 2


def test_results_ask_whose(shop: Shop) -> None:
    for wrong in (("results",), ("results", "--lone", "batch_x")):
        done = shop.antrean(*wrong)
        assert (done.code, done.out) == (2, "")
        assert "name the results" in done.err
    assert shop.antrean("results", "--lone").out == ""
