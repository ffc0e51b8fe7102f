"""The doctor finds each defect of jobs, repairs what is safe to repair, and leaves a sound ledger as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, event, insert, select, update

from schemas.job import LEGAL_MOVES, JobState, Move
from tests.support.ledger import a_job, claim, put, record, rows, state, success
from tests.support.ward import DAY_MS, RAW, WORKER, Ward, make_ward, now_ms
from worker.cli.doctor_words import MEANINGS
from worker.operations.doctor import mend
from worker.settings import Settings
from worker.storage.engine import Ledger
from worker.storage.tables import attempts, batches, jobs, requests, results, usage, wants


@pytest.fixture
def ward(ledger: Ledger, ledger_settings: Settings, valkey: Any, valkey_path: str) -> Ward:
    return make_ward(ledger, ledger_settings, valkey, valkey_path)


def test_a_sound_ledger_has_no_finding_and_a_repair_changes_nothing(ward: Ward) -> None:
    before = ward.everything()
    assert ward.names() == []
    after = mend(ward.ledger, ward.settings, ward.look())
    assert (after.findings, after.published) == ([], 1)
    assert ward.everything() == before


def lose_the_result(ward: Ward) -> None:
    ward.run(
        delete(results).where(results.c.job_id == ward.ids["succeeded"]),
        delete(usage).where(usage.c.job_id == ward.ids["succeeded"]),
    )


def lose_the_usage(ward: Ward) -> None:
    ward.run(delete(usage).where(usage.c.job_id == ward.ids["succeeded"]))


def use_what_is_not_there(ward: Ward) -> None:
    [row] = rows(ward.ledger, "usage")
    ward.run(insert(usage).values({**row._mapping, "number": 2}))


def lose_the_request(ward: Ward) -> None:
    ward.run(delete(requests).where(requests.c.job_id == ward.ids["queued"]))


def outrun_the_claims(ward: Ward) -> None:
    ward.run(update(attempts).where(attempts.c.job_id == ward.ids["failed"]).values(number=7, generation=3))


def stop_its_run(ward: Ward) -> None:
    """As two transactions leave it that did not see each other."""
    batch = {
        "endpoint": "e",
        "created_at_ms": 5,
        "submitted_at_ms": 5,
        "details": {},
        "kind": "run",
        "total": 1,
    }
    ward.run(
        insert(batches).values(id="stopped", label="stopped", held_at_ms=5, **batch),
        insert(batches).values(id="living", label="living", **batch),
        insert(wants).values(batch_id="living", position=1, job_id=ward.ids["waiting"]),
    )
    ward.set("waiting", batch_id="stopped")


def setting(which: str, **values: Any) -> Callable[[Ward], None]:
    return lambda ward: ward.set(which, **values)


DEFECTS: list[tuple[str, Callable[[Ward], None], str, bool]] = [
    ("unknown_state", setting("queued", state="dreaming"), "queued", False),
    ("half_a_claim", setting("running", claim_token=None), "running", True),
    ("half_a_claim", setting("running", worker_id=None), "running", True),
    ("claim_left_over", setting("queued", claim_token="t"), "queued", True),
    ("claim_left_over", setting("waiting", worker_id="w"), "waiting", True),
    ("claim_left_over", setting("cancelled", worker_id="w"), "cancelled", True),
    ("ended_without_time", setting("failed", ended_at_ms=None), "failed", True),
    ("ended_without_time", setting("cancelled", ended_at_ms=None), "cancelled", True),
    ("open_with_end", setting("queued", ended_at_ms=5), "queued", True),
    ("open_with_end", setting("running", ended_at_ms=5), "running", True),
    ("waiting_without_time", setting("waiting", not_before_ms=None), "waiting", True),
    ("waiting_for_long", lambda w: w.set("waiting", not_before_ms=now_ms() + 31 * DAY_MS), "waiting", False),
    (
        "published_long_ago",
        lambda w: w.set("published", published_at_ms=now_ms() - DAY_MS),
        "published",
        True,
    ),
    (
        "published_long_ago",
        lambda w: w.set("published", published_at_ms=now_ms() + DAY_MS),
        "published",
        True,
    ),
    ("left_behind", stop_its_run, "waiting", True),
    ("claims_behind_attempts", outrun_the_claims, "failed", True),
    ("success_without_result", lose_the_result, "succeeded", False),
    ("result_without_usage", lose_the_usage, "succeeded", True),
    ("usage_without_result", use_what_is_not_there, "succeeded", True),
    ("request_missing", lose_the_request, "queued", True),
    *[
        (
            "result_without_success",
            setting("succeeded", state=state.value, ended_at_ms=None),
            "succeeded",
            True,
        )
        for state in (JobState.QUEUED, JobState.RUNNING)
    ],
]


@pytest.mark.parametrize(
    ("name", "plant", "which", "is_repairable"),
    DEFECTS,
    ids=[f"{one[0]}-{i}" for i, one in enumerate(DEFECTS)],
)
def test_a_defect_is_found_and_repaired_and_not_found_again(
    ward: Ward, name: str, plant: Callable[[Ward], None], which: str, is_repairable: bool
) -> None:
    plant(ward)
    found = ward.look()
    assert name in [one.name for one in found.findings]
    one = next(one for one in found.findings if one.name == name)
    assert (one.count, one.examples, one.is_repairable) == (1, (ward.ids[which],), is_repairable)
    others = {which: row for which in ward.ids if (row := ward.row(which)).id != one.examples[0]}
    assert ward.names() == [one.name for one in found.findings], "a look changes nothing"

    after = mend(ward.ledger, ward.settings, found)
    assert [one.name for one in after.findings] == ([] if is_repairable else [name])
    assert {which: ward.row(which) for which in others} == others, "its neighbours stay as they are"


def test_each_finding_has_words_of_its_own(ward: Ward) -> None:
    assert {name for name, *_ in DEFECTS} <= MEANINGS.keys()
    assert all(words.endswith(".") for words in MEANINGS.values())
    assert len(set(MEANINGS.values())) == len(MEANINGS)


def test_tokens_are_counted_from_the_stored_answer(ward: Ward) -> None:
    lose_the_usage(ward)
    mend(ward.ledger, ward.settings, ward.look())
    [row] = rows(ward.ledger, "usage")
    assert (row.number, row.model, row.is_used) == (1, "m-2", True)
    assert (row.prompt_tokens, row.completion_tokens, row.total_tokens, row.cached_tokens) == (3, 4, 7, 1)


@pytest.mark.parametrize("raw", [b"<html>", b"[1]", b'{"usage": 3, "model": 4}', b"\xff\x00", b""])
def test_tokens_of_an_answer_that_does_not_tell_are_zero(ward: Ward, raw: bytes) -> None:
    lose_the_usage(ward)
    ward.run(update(results).values(raw=raw))
    mend(ward.ledger, ward.settings, ward.look())
    [row] = rows(ward.ledger, "usage")
    assert (row.model, row.total_tokens, row.is_used) == ("m", 0, True)


def test_usage_that_was_kept_as_unused_is_not_written_twice(ward: Ward) -> None:
    ward.run(update(usage).values(is_used=False))
    assert ward.names() == ["result_without_usage"]
    assert mend(ward.ledger, ward.settings, ward.look()).findings == []
    [row] = rows(ward.ledger, "usage")
    assert (row.is_used, row.model) == (True, "m")


def test_usage_of_jobs_that_were_pruned_is_no_defect(ward: Ward) -> None:
    id_ = ward.ids["succeeded"]
    for table in (requests, attempts, results):
        ward.run(delete(table).where(table.c.job_id == id_))
    ward.run(delete(jobs).where(jobs.c.id == id_))
    assert ward.names() == []


def test_usage_of_a_pruned_job_whose_id_is_used_again_is_no_defect_and_stays_used(ward: Ward) -> None:
    [row] = rows(ward.ledger, "usage")
    again = ward.ids["queued"]  # as if this id had been paid for before
    ward.run(insert(usage).values({**row._mapping, "job_id": again}))
    assert ward.names() == []
    ward.run(update(jobs).where(jobs.c.id == again).values(batch_id="batch_other"))
    mend(ward.ledger, ward.settings, ward.look())
    assert rows(ward.ledger, "usage", job_id=again)[0].is_used is True


@pytest.mark.parametrize("which", ["queued", "waiting"])
def test_a_job_without_its_request_fails_by_legal_moves(ward: Ward, which: str) -> None:
    assert LEGAL_MOVES[JobState.WAITING, Move.RELAY] is JobState.QUEUED
    assert LEGAL_MOVES[JobState.QUEUED, Move.CLAIM] is JobState.RUNNING
    ward.run(delete(requests).where(requests.c.job_id == ward.ids[which]))
    mend(ward.ledger, ward.settings, ward.look())
    row = ward.row(which)
    assert (row.state, row.failure_kind, row.worker_id) == ("failed", "invalid_request", None)
    assert row.ended_at_ms is not None and row.not_before_ms is None
    last = rows(ward.ledger, "attempts", job_id=row.id)[-1]
    assert (last.outcome, last.number, row.claims) == ("invalid_request", row.claims, last.number)


def test_a_job_that_was_to_be_cancelled_is_cancelled_and_not_queued_again(ward: Ward) -> None:
    ward.set("running", claim_token=None, is_cancel_requested=True)
    assert mend(ward.ledger, ward.settings, ward.look()).findings == []
    assert state(ward.ledger, ward.ids["running"]) == "cancelled"


def test_a_result_makes_its_job_succeeded_by_the_claim_that_brought_it(ward: Ward) -> None:
    ward.set("succeeded", state="failed", claim_token=None, worker_id=None, failure_kind="timeout")
    mend(ward.ledger, ward.settings, ward.look())
    row = ward.row("succeeded")
    assert (row.state, row.claim_token, row.worker_id) == ("succeeded", f"{WORKER}:succeeded", WORKER)
    assert (row.http_status, row.failure_kind) == (200, None)
    # And so a record that is repeated is known as such, and a late one is kept as usage only.
    assert record(ward.ledger, success(ward.claimed["succeeded"])) == ["repeated"]


@pytest.mark.parametrize("token", [None, f"{WORKER}:succeeded"])
def test_a_job_that_has_its_result_is_not_queued_for_a_moment(ward: Ward, token: str | None) -> None:
    ward.set("succeeded", state="running", claim_token=token, worker_id=None, ended_at_ms=None)
    seen: list[str] = []
    one = select(jobs.c.state).where(jobs.c.id == ward.ids["succeeded"])

    def see(connection: Connection) -> None:
        seen.append(connection.execute(one).scalar_one())

    event.listen(ward.ledger.engine, "commit", see)
    assert mend(ward.ledger, ward.settings, ward.look()).findings == []
    event.remove(ward.ledger.engine, "commit", see)
    assert set(seen) == {"running", "succeeded"}


def test_a_job_whose_worker_is_forgotten_stays_with_the_one_that_its_token_names(ward: Ward) -> None:
    ward.set("running", worker_id=None)
    assert mend(ward.ledger, ward.settings, ward.look()).findings == []
    row = ward.row("running")
    assert (row.state, row.worker_id, row.claim_token) == ("running", WORKER, f"{WORKER}:running")
    assert record(ward.ledger, success(ward.claimed["running"])) == ["applied"]


def test_a_job_whose_attempt_is_ahead_of_its_claims_is_counted_right_before_it_is_let_go(ward: Ward) -> None:
    outrun_the_claims(ward)
    ward.set("failed", state="running", claim_token=None, ended_at_ms=None)
    seen: list[tuple[str, int]] = []
    one = select(jobs.c.state, jobs.c.claims).where(jobs.c.id == ward.ids["failed"])

    def see(connection: Connection) -> None:
        row = connection.execute(one).one()
        seen.append((row.state, row.claims))

    event.listen(ward.ledger.engine, "commit", see)
    mend(ward.ledger, ward.settings, ward.look())
    assert ("queued", 7) in seen and ("queued", 1) not in seen


@pytest.mark.parametrize(
    "plant", [one[1] for one in DEFECTS if one[3]], ids=[one[0] for one in DEFECTS if one[3]]
)
def test_no_repair_scans_a_table_while_it_keeps_sqlite_s_other_writers_waiting(
    sqlite_ledger: Ledger, tmp_path: Path, valkey: Any, valkey_path: str, plant: Callable[[Ward], None]
) -> None:
    settings = Settings(home=tmp_path / "only", _env_file=None)
    ward = make_ward(sqlite_ledger, settings, valkey, valkey_path)
    plant(ward)
    found = ward.look()
    steps: list[str] = []

    def explain(connection: Connection, cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if connection.get_execution_options().get("antrean_begin") == "IMMEDIATE":
            one = values[0] if isinstance(values, list) else values
            steps.extend(row[3] for row in cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", one))

    event.listen(sqlite_ledger.engine, "before_cursor_execute", explain)
    assert mend(ward.ledger, ward.settings, found).findings == []
    assert steps
    large = ("jobs", "requests", "attempts", "results", "usage")
    assert [step for step in steps if step.startswith("SCAN") and step.split()[1] in large] == []
    assert [step for step in steps if "id>?" in step] == [], "nor all that comes behind an id"


def test_a_result_of_a_second_attempt_is_not_taken_for_another_job_s_first(ward: Ward) -> None:
    id_ = ward.ids["waiting"]
    ward.set("waiting", state="queued", not_before_ms=None)
    job = claim(ward.ledger, id_, token="w9:2", worker="w9", now_ms=now_ms())[id_]
    record(ward.ledger, success(job, worker="w9", raw=RAW))
    ward.set("waiting", state="failed", claim_token=None, worker_id=None)
    assert mend(ward.ledger, ward.settings, ward.look()).findings == []
    row = ward.row("waiting")
    assert (row.state, row.claim_token, row.worker_id) == ("succeeded", "w9:2", "w9")


def test_more_than_one_step_is_repaired_and_only_five_are_named(ward: Ward) -> None:
    ids = [job.id for job in put(ward.ledger, *[a_job() for _ in range(1201)], now_ms=now_ms())]
    ward.run(update(jobs).where(jobs.c.id.in_(ids)).values(ended_at_ms=1))
    one = ward.finding("open_with_end")
    assert (one.count, len(one.examples)) == (1201, 5)
    assert mend(ward.ledger, ward.settings, ward.look()).findings == []
