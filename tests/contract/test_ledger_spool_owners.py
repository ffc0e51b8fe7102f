"""Spools of several ledgers in one home, torn lines in them, and what is given back while the database is away."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, update
from structlog.testing import capture_logs

from tests.contract.test_ledger_spool import files, leave, paid
from tests.support.clock import FakeClock
from tests.support.house import AwayWhenTold
from tests.support.ledger import ENDPOINT, a_job, claim_one, job_row, of_job, put_one, rows, state, success
from tests.support.processes import wait_until
from worker.storage import tables
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway, WriterStopped
from worker.storage.outcomes import Success
from worker.storage.reply import Reply
from worker.storage.writer import GroupWriter
from worker.storage.writer_requests import ClaimJob, OwedWork, RecordOutcome, WriteDownJob
from worker.upkeep.heartbeat import Heartbeat
from worker.upkeep.presence import Presence
from worker.upkeep.spool import SpoolFile, replay_leftovers


class Body:
    """A worker's heartbeat, its lock and its writer, on one ledger of a home."""

    def __init__(self, ledger: Ledger, home: Path, name: str) -> None:
        clock = FakeClock()
        self.writer = GroupWriter(ledger, worker_id=name, endpoint=ENDPOINT, clock=clock, window_s=0.0)
        self.writer.start()
        self.presence = Presence(home / "workers", name)
        self.presence.begin()
        self.heartbeat = Heartbeat(
            ledger,
            self.writer,
            SpoolFile(home / "spool", name),
            self.presence,
            clock,
            endpoint=ENDPOINT,
            slots=lambda: 4,
            lease_s=6.0,
            beat_s=1.0,
            spool_folder=home / "spool",
            max_solo_losses=3,
        )

    def die(self) -> None:
        """Its process ends: the kernel lets its lock go, and the lock's file stays."""
        assert self.presence._descriptor is not None
        os.close(self.presence._descriptor)
        self.presence._descriptor = None


@pytest.fixture
def body(tmp_path: Path) -> Iterator[Callable[..., Body]]:
    made: list[Body] = []

    def make(ledger: Ledger, name: str = "me") -> Body:
        made.append(Body(ledger, tmp_path, name))
        return made[-1]

    yield make
    for one in made:
        one.writer.stop(10)
        one.presence.end()


def test_a_spool_of_another_ledger_in_the_same_home_is_left_alone(
    ledger: Ledger, body: Callable[..., Body], tmp_path: Path
) -> None:
    elsewhere = of_job(success(claim_one(ledger, put_one(ledger))), "of-another-ledger")
    path = leave(tmp_path / "spool", "stranger", elsewhere)
    before = path.read_bytes()
    heartbeat = body(ledger).heartbeat
    heartbeat.beat()
    heartbeat.beat()
    assert files(tmp_path / "spool") == ["stranger.spool"]
    assert path.read_bytes() == before


def test_the_workers_of_two_ledgers_of_a_home_record_each_their_own(
    ledger: Ledger, sqlite_ledger: Ledger, body: Callable[..., Body], tmp_path: Path
) -> None:
    """Though a job of the same id, which its producer chose, is in both."""
    for each in (ledger, sqlite_ledger):
        put_one(each, id="report")
    dead = body(ledger, "dead")
    dead.heartbeat.beat()
    leave(tmp_path / "spool", "dead", success(claim_one(ledger, "report", worker="dead"), worker="dead"))
    dead.die()
    if ledger.engine.url != sqlite_ledger.engine.url:
        body(sqlite_ledger, "two").heartbeat.beat()
        assert state(sqlite_ledger, "report") == "queued"
        assert files(tmp_path / "spool") == ["dead.spool"]
    body(ledger, "one").heartbeat.beat()
    assert state(ledger, "report") == "succeeded"
    assert files(tmp_path / "spool") == []


def test_the_answers_of_a_worker_whose_row_a_backup_lost_are_recorded(
    ledger: Ledger, body: Callable[..., Body], tmp_path: Path
) -> None:
    id_ = put_one(ledger)
    job = claim_one(ledger, id_, token="gone:1")
    ledger.run(lambda c: c.execute(update(tables.jobs).values(state="queued", claim_token=None)))
    leave(tmp_path / "spool", "gone", success(job))
    body(ledger).heartbeat.beat()
    assert state(ledger, id_) == "succeeded"


@pytest.mark.parametrize("cut_at", [1, 15, 0.5, -2])
def test_a_torn_line_without_an_end_costs_only_itself(tmp_path: Path, cut_at: float) -> None:
    path = leave(tmp_path, "w1", paid("j1"), paid("j2"), paid("j3"))
    first, second, third = path.read_bytes().splitlines(keepends=True)
    end = round(len(second) * cut_at) if isinstance(cut_at, float) else int(cut_at)
    path.write_bytes(first + second[:end] + third)
    back: list[Success] = []
    assert replay_leftovers(tmp_path, back.append) == 2
    assert [answer.job_id for answer in back] == ["j1", "j3"]
    assert (tmp_path / "rejected.jsonl").read_bytes() == second[:end] + b"\n"


def test_an_answer_is_not_written_on_the_line_of_one_that_was_cut(tmp_path: Path) -> None:
    spool = SpoolFile(tmp_path, "w1")
    spool.keep(paid("j1"))
    path = tmp_path / "w1.spool"
    os.truncate(path, path.stat().st_size - 5)
    spool.keep(paid("j2"))
    assert spool._fd is not None
    os.close(spool._fd)
    back: list[Success] = []
    assert replay_leftovers(tmp_path, back.append) == 1
    assert [answer.job_id for answer in back] == ["j2"]


def test_what_is_given_back_while_the_database_is_away_is_said_once_it_is_back(
    ledger: Ledger, clock: FakeClock
) -> None:
    """A hint, and the end of a revoked job: nobody waits for either, and nobody would say it again."""
    away = AwayWhenTold(ledger.engine)
    hinted, ended = put_one(ledger), put_one(ledger)
    ledger.run(lambda c: c.execute(update(tables.jobs).values(published_at_ms=1)))
    writer = GroupWriter(away, worker_id="w1", endpoint=ENDPOINT, clock=clock, window_s=0.0)
    writer.start()
    away.is_away = lambda: True
    first = writer.begin(
        lambda c: c.execute(update(tables.jobs).where(tables.jobs.c.id == ended).values(priority=7))
    )
    writer.give_message_back(hinted)
    with pytest.raises(DatabaseAway):
        writer.call(lambda connection: None)
    away.is_away = lambda: False
    first.result(within_s=10)
    assert writer.stop(10)
    assert job_row(ledger, hinted).published_at_ms is None
    assert job_row(ledger, ended).priority == 7


def test_jobs_that_a_stopped_worker_could_not_give_back_count_no_loss(
    ledger: Ledger, body: Callable[..., Body]
) -> None:
    """The database was away while it ended."""
    away = AwayWhenTold(ledger.engine)
    stopped = body(away, "stopped")
    stopped.heartbeat.beat()
    job = claim_one(ledger, put_one(ledger), worker="stopped")
    away.is_away = lambda: True
    with pytest.raises(DatabaseAway):
        stopped.heartbeat.end()
    stopped.die()
    body(ledger, "next").heartbeat.beat()
    row = job_row(ledger, job.id)
    assert (row.state, row.losses) == ("queued", 0)
    assert [one.outcome for one in rows(ledger, "attempts")] == ["released"]


def test_jobs_of_a_killed_worker_count_as_lost_with_it(ledger: Ledger, body: Callable[..., Body]) -> None:
    killed = body(ledger, "killed")
    killed.heartbeat.beat()
    job = claim_one(ledger, put_one(ledger), worker="killed")
    killed.die()
    body(ledger, "next").heartbeat.beat()
    assert job_row(ledger, job.id).losses == 1


class Odd(Ledger):
    """The real ledger, of which a look raises what no heartbeat expects."""

    error: Exception = OSError(errno.EMFILE, "Too many open files")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        raise self.error
        yield


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), KeyError("x"), RecursionError()]
)
def test_an_error_that_nobody_thought_of_ends_no_heartbeat_and_its_lease_is_raised(
    ledger: Ledger, body: Callable[..., Body], error: Exception
) -> None:
    odd = Odd(ledger.engine)
    odd.error = error
    one = body(odd)
    is_stopping = threading.Event()
    one.heartbeat._beat_s = 0.01
    thread = threading.Thread(target=one.heartbeat.run, args=(is_stopping,))
    with capture_logs() as said:
        thread.start()
        wait_until(
            lambda: any(row.sequence >= 3 for row in rows(ledger, "workers")), within_s=10, what="it beats on"
        )
        is_stopping.set()
        thread.join(10)
    failed = [line for line in said if line["event"] == "heartbeat.failed"]
    assert len(failed) >= 2
    assert failed[0]["error"] == type(error).__name__
    assert ("open files" in str(failed[0]["lack"])) == isinstance(error, OSError)


def test_a_writer_that_dies_leaves_nobody_waiting_and_says_so(ledger: Ledger, clock: FakeClock) -> None:
    """Paid answers are told that the database is away, and go to the spool."""
    told: list[BaseException] = []
    writer = GroupWriter(
        ledger, worker_id="w1", endpoint=ENDPOINT, clock=clock, window_s=0.0, on_death=told.append
    )
    job = claim_one(ledger, put_one(ledger))
    waiting: list[Reply[Any]] = [Reply() for _ in range(7)]
    before, again, breaking, behind, owed, claim, message = waiting
    writer._put(RecordOutcome(success(job), before))
    writer._put(RecordOutcome(success(job), again))  # put off to the next group
    writer._put(OwedWork(lambda _: None, owed))
    writer._put(ClaimJob("another", claim))
    writer._put(WriteDownJob(a_job(), message))
    writer._put(RecordOutcome(object(), breaking))  # type: ignore[arg-type]  # no outcome: gathering it breaks
    writer._put(RecordOutcome(success(job), behind))
    writer.start()
    for reply in (before, again, breaking, behind, owed):
        with pytest.raises(DatabaseAway, match="the writer has ended"):
            reply.result(10)
    for reply in (claim, message):
        with pytest.raises(WriterStopped):
            reply.result(10)
    with pytest.raises(WriterStopped):
        writer.claim("another")
    assert [type(exc) for exc in told] == [AttributeError]
