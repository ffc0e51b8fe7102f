"""The heartbeat on both databases: leases, rescue, the spool, and what a worker's end leaves."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    a_job,
    claim_one,
    job_row,
    of_job,
    put,
    put_one,
    rows,
    state,
    success,
)
from tests.support.upkeep import add_worker
from worker.storage.engine import Ledger
from worker.storage.writer import GroupWriter
from worker.upkeep.heartbeat import Heartbeat
from worker.upkeep.presence import Presence
from worker.upkeep.spool import SpoolFile


@pytest.fixture
def writer(ledger: Ledger, clock: FakeClock) -> Iterator[GroupWriter]:
    writer = GroupWriter(ledger, worker_id="me", endpoint=ENDPOINT, clock=clock, window_s=0.0)
    writer.start()
    yield writer
    assert writer.stop(10)


@pytest.fixture
def spool(tmp_path: Path) -> SpoolFile:
    return SpoolFile(tmp_path / "spool", "me")


@pytest.fixture
def heartbeat(
    ledger: Ledger, writer: GroupWriter, spool: SpoolFile, clock: FakeClock, tmp_path: Path
) -> Heartbeat:
    return Heartbeat(
        ledger,
        writer,
        spool,
        Presence(tmp_path / "workers", "me"),
        clock,
        endpoint=ENDPOINT,
        slots=lambda: 4,
        lease_s=2.0,
        beat_s=0.3,
        spool_folder=tmp_path / "spool",
        max_solo_losses=3,
    )


def beat_for(heartbeat: Heartbeat, clock: FakeClock, seconds: float) -> None:
    for _ in range(round(seconds / 0.5)):
        clock.advance(0.5)
        heartbeat.beat()


def test_a_worker_that_stands_still_for_a_lease_loses_its_jobs(
    ledger: Ledger, heartbeat: Heartbeat, clock: FakeClock
) -> None:
    add_worker(ledger, "dead", clock)
    id_ = put_one(ledger)
    claim_one(ledger, id_, worker="dead")
    heartbeat.beat()
    beat_for(heartbeat, clock, 1.5)
    assert state(ledger, id_) == "running"
    beat_for(heartbeat, clock, 0.5)
    assert (state(ledger, id_), job_row(ledger, id_).losses) == ("queued", 1)
    assert [(w.id, w.end_reason) for w in rows(ledger, "workers")] == [("dead", "lost"), ("me", None)]


def test_a_paid_answer_of_a_dead_worker_is_recorded_before_its_jobs_are_rescued(
    ledger: Ledger, heartbeat: Heartbeat, clock: FakeClock, tmp_path: Path
) -> None:
    add_worker(ledger, "dead", clock, lease_ms=1)
    job = claim_one(ledger, put_one(ledger), worker="dead")
    heartbeat.beat()
    from tests.contract.test_ledger_spool import leave  # local: a helper of the neighbouring suite

    leave(tmp_path / "spool", "dead", success(job, worker="dead"))
    beat_for(heartbeat, clock, 3)
    assert (state(ledger, job.id), job_row(ledger, job.id).losses) == ("succeeded", 0)


def test_a_beat_replays_its_own_spool_and_lets_the_claim_go(
    ledger: Ledger, heartbeat: Heartbeat, writer: GroupWriter, spool: SpoolFile
) -> None:
    job = writer.claim(put_one(ledger))
    assert job is not None
    spool.keep(success(job, worker="me"))
    heartbeat.beat()
    assert state(ledger, job.id) == "succeeded"
    assert (len(spool), writer.open_claims) == (0, {})


def test_a_beat_replays_each_answer_without_waiting_for_a_group(
    ledger: Ledger,
    heartbeat: Heartbeat,
    writer: GroupWriter,
    spool: SpoolFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside a busy writer a window an answer would add up to more than a lease."""
    for _ in range(3):
        job = writer.claim(put_one(ledger))
        assert job is not None
        spool.keep(success(job, worker="me"))
    waits: list[bool] = []
    record = writer.record

    def note(outcome: Any, *, is_urgent: bool = False, **options: Any) -> Any:
        waits.append(not is_urgent)
        return record(outcome, is_urgent=is_urgent, **options)

    monkeypatch.setattr(writer, "record", note)
    heartbeat.beat()
    assert waits == [False] * 3


def test_a_beat_releases_what_its_process_does_not_hold(
    ledger: Ledger, heartbeat: Heartbeat, writer: GroupWriter
) -> None:
    held, orphan = writer.claim(put_one(ledger)), put_one(ledger)
    assert held is not None
    claim_one(ledger, orphan, worker="me", token="lost answer")
    heartbeat.beat()
    assert (state(ledger, held.id), state(ledger, orphan)) == ("running", "queued")


def test_a_beat_expires_what_is_late_however_much_it_is(
    ledger: Ledger, heartbeat: Heartbeat, clock: FakeClock
) -> None:
    put(ledger, *[a_job(expires_at_ms=clock.now_ms() + 100) for _ in range(501)])
    heartbeat.beat()
    assert {row.state for row in rows(ledger, "jobs")} == {"queued"}
    clock.advance(1)
    heartbeat.beat()
    assert {row.state for row in rows(ledger, "jobs")} == {"expired"}


def test_a_worker_that_ends_says_so(ledger: Ledger, heartbeat: Heartbeat) -> None:
    heartbeat.beat()
    heartbeat.beat()
    [row] = rows(ledger, "workers")
    assert (row.sequence, row.ended_at_ms) == (2, None)
    heartbeat.end()
    [row] = rows(ledger, "workers")
    assert row.end_reason == "stopped"


def test_a_worker_that_ends_releases_what_it_could_not_give_back_and_keeps_what_it_holds(
    ledger: Ledger, heartbeat: Heartbeat, writer: GroupWriter
) -> None:
    """Its writer may have died with claims that were never called; what is held has an answer in the spool."""
    heartbeat.beat()
    orphans = [claim_one(ledger, put_one(ledger), worker=writer.worker_id).id for _ in range(3)]
    held = claim_one(ledger, put_one(ledger), worker=writer.worker_id)
    writer.open_claims[held.id] = held.token
    heartbeat.end()
    assert [(row.state, row.losses) for row in (job_row(ledger, id_) for id_ in orphans)] == [
        ("queued", 0)
    ] * 3
    assert state(ledger, held.id) == "running"


def test_a_spooled_answer_whose_job_was_pruned_is_put_aside_and_not_dropped(
    ledger: Ledger, heartbeat: Heartbeat, clock: FakeClock, tmp_path: Path
) -> None:
    """It was paid for, and its worker beat in this ledger."""
    from tests.contract.test_ledger_spool import leave  # local: a helper of the neighbouring suite

    add_worker(ledger, "dead", clock)
    job = claim_one(ledger, put_one(ledger))
    leave(tmp_path / "spool", "dead", of_job(success(job), "pruned"))
    heartbeat.beat()
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["rejected.jsonl"]
    assert b"pruned" in (tmp_path / "spool" / "rejected.jsonl").read_bytes()


def test_a_claim_is_let_go_while_its_answer_can_be_neither_stored_nor_put_aside(
    ledger: Ledger, heartbeat: Heartbeat, writer: GroupWriter, spool: SpoolFile, tmp_path: Path
) -> None:
    job = writer.claim(put_one(ledger))
    assert job is not None
    spool.keep(success(job, worker="me", http_status=None))
    (tmp_path / "spool" / "rejected.jsonl").mkdir()  # in the way
    heartbeat.beat()
    heartbeat.beat()
    assert (state(ledger, job.id), len(spool)) == ("queued", 1), "the job goes on, the answer stays"
    (tmp_path / "spool" / "rejected.jsonl").rmdir()
    heartbeat.beat()
    assert (len(spool), (tmp_path / "spool" / "rejected.jsonl").read_bytes().count(b"\n")) == (0, 1)


@pytest.mark.parametrize("has_lock_here", [True, False])
def test_no_job_is_rescued_while_its_worker_s_spool_is_recorded_by_another(
    ledger: Ledger, heartbeat: Heartbeat, clock: FakeClock, tmp_path: Path, *, has_lock_here: bool
) -> None:
    from tests.contract.test_ledger_spool import leave  # local: a helper of the neighbouring suite

    add_worker(ledger, "dead", clock)
    paid, other = (claim_one(ledger, put_one(ledger), worker="dead", token=token) for token in "ab")
    if has_lock_here:
        (tmp_path / "workers").mkdir()
        (tmp_path / "workers" / "dead.lock").touch()
    path = leave(tmp_path / "spool", "dead", success(paid, worker="dead"))
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another heartbeat, in the middle of it
        heartbeat.beat()
        beat_for(heartbeat, clock, 5)
        assert (state(ledger, paid.id), state(ledger, other.id)) == ("running", "running")
    heartbeat.beat()
    assert (state(ledger, paid.id), state(ledger, other.id)) == ("succeeded", "queued")
    assert (job_row(ledger, paid.id).losses, job_row(ledger, other.id).losses) == (0, 1)


def test_a_suspended_worker_keeps_no_job_from_going_on_because_it_has_spooled(
    ledger: Ledger, heartbeat: Heartbeat, clock: FakeClock, tmp_path: Path
) -> None:
    """Nobody knows when it wakes. Its answer counts then, if there is none yet."""
    add_worker(ledger, "sleeper", clock)
    job = claim_one(ledger, put_one(ledger), worker="sleeper")
    Presence(tmp_path / "workers", "sleeper").begin()
    asleep = SpoolFile(tmp_path / "spool", "sleeper")
    asleep.keep(success(job, worker="sleeper"))
    heartbeat.beat()
    beat_for(heartbeat, clock, 2.5)
    assert state(ledger, job.id) == "queued"
    assert len(asleep) == 1


def test_the_jobs_of_a_worker_whose_spool_cannot_be_read_wait_and_it_is_said(
    ledger: Ledger, heartbeat: Heartbeat, clock: FakeClock, tmp_path: Path
) -> None:
    add_worker(ledger, "dead", clock)
    id_ = claim_one(ledger, put_one(ledger), worker="dead").id
    path = tmp_path / "spool" / "dead.spool"
    (path / "x").mkdir(parents=True)  # no right to it would do, but not where the tests are root
    heartbeat.beat()
    with capture_logs() as said:
        beat_for(heartbeat, clock, 3)
    assert state(ledger, id_) == "running"
    assert {"spool.unreadable", "rescue.waits_for_spool"} <= {line["event"] for line in said}
    (path / "x").rmdir()
    path.rmdir()
    beat_for(heartbeat, clock, 0.5)
    assert state(ledger, id_) == "queued"
