"""The doctor's rounds beside the jobs: workers, batches, the spool, the broker, the database itself."""

from __future__ import annotations

import base64
import fcntl
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import delete, text, update

from tests.support.ledger import ENDPOINT, a_claim, a_job, claim, job_row, put, rows, state, success
from tests.support.ward import HOUR_MS, RAW, WORKER, Ward, admit, make_ward, now_ms, with_broker
from worker.broker.client import BrokerEpoch
from worker.broker.hints import BULK_QUEUE, list_keys
from worker.operations.doctor import examine, mend
from worker.settings import Settings
from worker.storage.batches import finish_submission, hold_batch, make_batch
from worker.storage.doctor import rescue_worker
from worker.storage.engine import Ledger, open_ledger
from worker.storage.errors import NotMigrated
from worker.storage.migrating import REVISIONS, SCRIPTS, migrate
from worker.storage.moves import cancel_jobs
from worker.storage.tables import jobs, workers
from worker.storage.workers import beat
from worker.upkeep.presence import Presence, has_died, is_alive
from worker.upkeep.spool import SpoolFile


@pytest.fixture
def ward(ledger: Ledger, ledger_settings: Settings, valkey: Any, valkey_path: str) -> Ward:
    return make_ward(ledger, ledger_settings, valkey, valkey_path)


def test_a_worker_that_has_ended_or_is_gone_and_holds_jobs_is_told_of_and_left_to_a_worker_s_lease(
    ward: Ward,
) -> None:
    admit(ward.ledger, "ended")
    at_ms = now_ms()
    ids = [job.id for job in put(ward.ledger, a_job(), a_job(), now_ms=at_ms)]
    claim(ward.ledger, ids[0], token="a", worker="ended", now_ms=at_ms)
    claim(ward.ledger, ids[1], token="b", worker="gone", now_ms=at_ms)
    ended = update(workers).where(workers.c.id == "ended")
    ward.run(ended.values(ended_at_ms=at_ms, end_reason="stopped"))
    assert ward.finding("silent_worker").examples == ("gone",), "what ended just now may still record"
    ward.run(ended.values(ended_at_ms=at_ms - 10_000))  # or by a clock that is behind
    one = ward.finding("silent_worker")
    assert (one.examples, one.is_repairable) == (("ended", "gone"), False)
    assert [one.name for one in mend(ward.ledger, ward.settings, ward.look()).findings] == ["silent_worker"]
    assert [state(ward.ledger, id_) for id_ in ids] == ["running", "running"]


def test_a_worker_whose_lock_is_held_keeps_its_jobs_whatever_its_row_says(ward: Ward) -> None:
    at_ms = now_ms()
    ids = [job.id for job in put(ward.ledger, *[a_job() for _ in range(3)], now_ms=at_ms)]
    for id_, worker in zip(ids, ("rowless", "ended", "silent"), strict=True):
        Presence(ward.settings.home / "workers", worker).begin()
        claim(ward.ledger, id_, token=f"{worker}:1", worker=worker, now_ms=at_ms)
    admit(ward.ledger, "ended")
    ward.run(update(workers).where(workers.c.id == "ended").values(ended_at_ms=1, end_reason="lost"))
    admit(ward.ledger, "silent", at_ms=at_ms - HOUR_MS)
    assert ward.names() == []
    mend(ward.ledger, ward.settings, ward.look())
    assert [job_row(ward.ledger, id_).losses for id_ in ids] == [0, 0, 0]
    assert {state(ward.ledger, id_) for id_ in ids} == {"running"}


def test_a_worker_that_is_looked_at_while_it_begins_is_not_taken_for_dead(tmp_path: Path) -> None:
    with (tmp_path / "me.lock").open("wb") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)  # as whoever looks does, for a moment
        Presence(tmp_path, "me").begin()
    assert (is_alive(tmp_path, "me"), has_died(tmp_path, "me")) == (True, False)
    assert [path.name for path in tmp_path.iterdir()] == ["me.lock"]


def test_a_worker_that_has_beaten_since_the_look_keeps_its_jobs(ward: Ward) -> None:
    """One that was still taking its lock when it was looked at, say."""
    admit(ward.ledger, "here")
    path = ward.settings.home / "workers" / "here.lock"
    path.parent.mkdir(parents=True)
    path.touch()
    id_ = put(ward.ledger, a_job(), now_ms=now_ms())[0].id
    claim(ward.ledger, id_, token="a", worker="here", now_ms=now_ms())
    found = ward.look()
    [worker] = found.dead
    ward.ledger.run(lambda connection: beat(connection, "here", now_ms=now_ms()))
    rescue_worker(ward.ledger, worker, max_solo_losses=3, now_ms=now_ms())
    assert (state(ward.ledger, id_), rows(ward.ledger, "workers", id="here")[0].ended_at_ms) == (
        "running",
        None,
    )
    Presence(path.parent, "here").begin()
    mend(ward.ledger, ward.settings, found)
    assert (state(ward.ledger, id_), path.exists()) == ("running", True)


def test_a_worker_whose_lock_is_free_on_this_machine_is_dead(ward: Ward) -> None:
    admit(ward.ledger, "here")
    presence = Presence(ward.settings.home / "workers", "here")
    presence.begin()
    id_ = put(ward.ledger, a_job(), now_ms=now_ms())[0].id
    claim(ward.ledger, id_, token="a", worker="here", now_ms=now_ms())
    assert ward.names() == [], "its lock is held"
    assert presence._descriptor is not None
    fcntl.flock(presence._descriptor, fcntl.LOCK_UN)  # as the kernel does when the process dies
    assert ward.finding("dead_worker").examples == ("here",)
    assert mend(ward.ledger, ward.settings, ward.look()).findings == []
    assert (state(ward.ledger, id_), ward.row("published").published_at_ms) == ("queued", None)
    assert rows(ward.ledger, "workers", id="here")[0].end_reason == "lost"
    assert not list((ward.settings.home / "workers").iterdir())


@pytest.mark.parametrize("lost", ["claim_token", "worker_id"])
def test_half_a_claim_of_a_dead_worker_is_made_whole_or_let_go_before_its_jobs_are_rescued(
    ward: Ward, lost: str
) -> None:
    admit(ward.ledger, "here")
    (ward.settings.home / "workers").mkdir(parents=True)
    (ward.settings.home / "workers" / "here.lock").touch()
    ids = [job.id for job in put(ward.ledger, a_job(), a_job(), now_ms=now_ms())]
    claim(ward.ledger, *ids, token="here:1", worker="here", now_ms=now_ms())
    ward.run(update(jobs).where(jobs.c.id == ids[0]).values({lost: None}))
    assert ward.names() == ["dead_worker", "half_a_claim"]
    assert mend(ward.ledger, ward.settings, ward.look()).findings == []
    assert [state(ward.ledger, id_) for id_ in ids] == ["queued", "queued"]


def test_a_job_of_a_dead_worker_that_has_its_result_is_never_queued(ward: Ward) -> None:
    (ward.settings.home / "workers").mkdir(parents=True)
    (ward.settings.home / "workers" / f"{WORKER}.lock").touch()
    for which in ("running", "succeeded"):
        ward.set(which, state="running", claim_token=None, ended_at_ms=None)
    mend(ward.ledger, ward.settings, ward.look())
    assert (ward.row("succeeded").state, ward.row("succeeded").losses) == ("succeeded", 0)
    assert [one.outcome for one in rows(ward.ledger, "attempts", job_id=ward.ids["succeeded"])] == [
        "succeeded"
    ]
    assert ward.row("running").state == "queued"


def test_a_silent_worker_of_another_machine_is_told_of_and_left_alone(ward: Ward) -> None:
    admit(ward.ledger, "far", at_ms=now_ms() - 21_000)
    admit(ward.ledger, "near", at_ms=now_ms() - 15_000)  # late, and no more than that
    id_ = put(ward.ledger, a_job(), now_ms=now_ms())[0].id
    claim(ward.ledger, id_, token="a", worker="far", now_ms=now_ms())
    one = ward.finding("silent_worker")
    assert (one.examples, one.is_repairable) == (("far",), False)
    assert [one.name for one in mend(ward.ledger, ward.settings, ward.look()).findings] == ["silent_worker"]
    assert state(ward.ledger, id_) == "running"


def test_jobs_that_no_live_worker_serves_are_named_by_their_endpoint(ward: Ward) -> None:
    put(ward.ledger, *[a_job(endpoint="https://other.test") for _ in range(3)], now_ms=now_ms())
    admit(ward.ledger, "far", at_ms=now_ms() - HOUR_MS, endpoint="https://other.test")
    ward.run(update(workers).where(workers.c.id == "far").values(ended_at_ms=1))
    one = ward.finding("unserved")
    assert (one.count, one.examples) == (3, ("https://other.test",))


def test_jobs_of_a_stopped_run_are_told_of_as_held_and_not_as_unserved(ward: Ward) -> None:
    """No worker would do them: they wait for their run."""
    a_batch(ward, "held", made_ms=now_ms(), is_submitted=True)
    ward.run(update(jobs).where(jobs.c.batch_id == "held").values(endpoint="https://other.test"))
    assert ward.names() == ["unserved"]
    ward.ledger.run(lambda connection: hold_batch(connection, "held", now_ms=now_ms()))
    assert ward.names() == ["held_batch"]


# Batches


def a_batch(ward: Ward, id_: str, *, made_ms: int, is_submitted: bool) -> str:
    def work(connection: Any) -> None:
        make_batch(
            connection, id_, kind="run", label="x", endpoint=ENDPOINT, idempotency_key=id_, now_ms=made_ms
        )
        if is_submitted:
            finish_submission(connection, id_, now_ms=made_ms)

    job = put(ward.ledger, a_job(batch_id=id_), now_ms=made_ms)[0]
    ward.ledger.run(work)
    return job.id


def test_a_submission_that_was_interrupted_is_told_of_once_nothing_comes_any_more(ward: Ward) -> None:
    a_batch(ward, "old", made_ms=now_ms() - HOUR_MS, is_submitted=False)
    a_batch(ward, "slow", made_ms=now_ms() - HOUR_MS, is_submitted=False)
    a_batch(ward, "done", made_ms=now_ms() - HOUR_MS, is_submitted=True)
    a_batch(ward, "young", made_ms=now_ms(), is_submitted=False)
    put(ward.ledger, a_job(batch_id="slow"), now_ms=now_ms())
    one = ward.finding("interrupted_submission")
    assert (one.count, one.examples) == (1, ("old",))


def test_a_held_batch_is_told_of_while_it_has_jobs_to_be_done(ward: Ward) -> None:
    id_ = a_batch(ward, "held", made_ms=now_ms(), is_submitted=True)
    ward.ledger.run(lambda connection: hold_batch(connection, "held", now_ms=now_ms()))
    assert ward.finding("held_batch").examples == ("held",)
    ward.ledger.run(lambda connection: cancel_jobs(connection, [id_], now_ms=now_ms()))
    assert ward.names() == []


def test_rows_without_their_job_are_told_of(ward: Ward) -> None:
    ward.run(delete(jobs).where(jobs.c.id == ward.ids["succeeded"]))
    one = ward.finding("stray_rows")
    assert (one.count, set(one.examples)) == (3, {"requests", "attempts", "results"})


# The spool


def leave(ward: Ward, worker: str, *answers: Any) -> SpoolFile:
    spool = SpoolFile(ward.settings.spool_folder, worker)
    for answer in answers:
        assert spool.keep(answer)
    return spool


def test_answers_that_a_dead_process_left_are_recorded(ward: Ward) -> None:
    paid = success(ward.claimed["running"], raw=RAW, ended_at_ms=now_ms())
    spool = leave(ward, "w9", paid)
    assert ward.names() == [], "its process lives"
    assert spool._fd is not None
    fcntl.flock(spool._fd, fcntl.LOCK_UN)
    one = ward.finding("stray_spool")
    assert (one.count, one.examples) == (1, ("w9.spool",))
    assert mend(ward.ledger, ward.settings, ward.look()).findings == []
    assert state(ward.ledger, ward.ids["running"]) == "succeeded"
    assert not list(ward.settings.spool_folder.glob("*.spool"))


def test_an_answer_of_a_job_that_is_not_in_this_ledger_is_put_aside_and_told_of(ward: Ward) -> None:
    known = success(ward.claimed["running"], raw=RAW, ended_at_ms=now_ms())
    foreign = success(a_claim("no-such"), raw=b"paid")
    spool = leave(ward, "w9", foreign, known)
    assert spool._fd is not None
    fcntl.flock(spool._fd, fcntl.LOCK_UN)
    after = mend(ward.ledger, ward.settings, ward.look())
    [one] = after.findings
    path = ward.settings.spool_folder / "rejected.jsonl"
    assert (one.name, one.count, one.examples) == ("rejected_answers", 1, (str(path),))
    assert base64.b64decode(orjson.loads(path.read_bytes())["raw"]) == b"paid"
    assert state(ward.ledger, ward.ids["running"]) == "succeeded"


def test_the_jobs_of_a_dead_worker_wait_while_another_records_its_spool(ward: Ward) -> None:
    admit(ward.ledger, "here")
    (ward.settings.home / "workers").mkdir(parents=True)
    (ward.settings.home / "workers" / "here.lock").touch()
    id_ = put(ward.ledger, a_job(), now_ms=now_ms())[0].id
    job = claim(ward.ledger, id_, token="a", worker="here", now_ms=now_ms())[id_]
    spool = leave(ward, "here", success(job, worker="here", raw=RAW, ended_at_ms=now_ms()))
    assert spool._fd is not None  # its lock is held: by a heartbeat that is in the middle of it
    assert ward.names() == ["dead_worker"]
    after = mend(ward.ledger, ward.settings, ward.look())
    assert ([one.name for one in after.findings], state(ward.ledger, id_)) == (["dead_worker"], "running")
    fcntl.flock(spool._fd, fcntl.LOCK_UN)
    assert mend(ward.ledger, ward.settings, after).findings == []
    assert (state(ward.ledger, id_), job_row(ward.ledger, id_).losses) == ("succeeded", 0)


# The broker


def test_a_broker_that_is_away_is_a_finding_and_no_error(ward: Ward, tmp_path: Path) -> None:
    ward.settings = with_broker(ward.settings, f"redis+socket://{tmp_path}/none.sock?virtual_host=0")
    assert ward.names() == ["broker_away"]


def test_a_broker_that_forgot_and_one_that_is_crowded_are_told_of(ward: Ward, valkey: Any) -> None:
    found = ward.look()
    assert (found.findings, found.messages, found.published) == ([], 0, 1)
    valkey.flushall()
    assert ward.finding("broker_forgot").examples == (ENDPOINT,)
    BrokerEpoch(valkey, ENDPOINT).set()
    valkey.rpush(list_keys(BULK_QUEUE)[0], *["x"] * 1010)
    assert ward.finding("crowded_broker").count == 1010


def test_an_embedded_broker_that_nobody_needs_is_not_missed(
    ledger: Ledger, ledger_settings: Settings
) -> None:
    found = examine(ledger, ledger_settings)
    assert (found.findings, found.messages) == ([], None)


# The database itself


def test_a_ledger_of_another_schema_is_told_of_and_brought_up(
    empty_ledger: Ledger, empty_settings: Settings
) -> None:
    found = examine(empty_ledger, empty_settings)
    assert [(one.name, one.is_repairable) for one in found.findings] == [("schema", True)]
    assert mend(empty_ledger, empty_settings, found).findings == []


def test_a_ledger_of_a_newer_antrean_is_told_of_and_left_alone(
    empty_ledger: Ledger, empty_settings: Settings
) -> None:
    migrate(empty_ledger)
    with empty_ledger.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    found = examine(empty_ledger, empty_settings)
    assert [(one.name, one.examples, one.is_repairable) for one in found.findings] == [
        ("newer_schema", ("9999",), False)
    ]
    assert mend(empty_ledger, empty_settings, found).findings == found.findings
    with pytest.raises(NotMigrated, match="9999, of a newer antrean: upgrade"):
        migrate(empty_ledger)


def test_the_revisions_that_are_known_are_those_that_there_are() -> None:
    there = sorted(path.name.partition("_")[0] for path in (SCRIPTS / "versions").glob("*.py"))
    assert there == sorted(REVISIONS)


def test_a_damaged_file_is_told_of_and_nothing_else_is_tried(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    for _ in range(4):
        put(sqlite_ledger, *[a_job(body="x" * 3000) for _ in range(50)])
    with sqlite_ledger.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    sqlite_ledger.dispose()
    path = tmp_path / "only" / "antrean.db"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xde\xad" * 50_000)
    settings = Settings(home=tmp_path / "only", _env_file=None)
    ledger = open_ledger(settings)
    assert [one.name for one in examine(ledger, settings).findings] == ["damaged_file"]
    path.write_bytes(b"no database at all" * 500)
    ledger.dispose()
    assert [one.name for one in examine(ledger, settings).findings] == ["damaged_file"]
    ledger.dispose()
