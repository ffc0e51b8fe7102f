"""A COMMIT that happens and does not say so, in the driver of each database: the group writer finds out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from schemas.job import Due
from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    give_back,
    job_row,
    put,
    put_one,
    rows,
    setback,
    state,
    success,
)
from tests.support.writing import claimed, in_one_group
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway
from worker.storage.outcomes import ClaimedJob, Recorded
from worker.storage.reply import Reply
from worker.storage.workers import release_orphans
from worker.storage.writer import GroupWriter
from worker.storage.writer_requests import ClaimJob
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.store import MemoryGateStore
from worker.upkeep.relay import Relay


class Silence:
    """Makes so many of the next COMMITs happen without an answer, as a connection does that breaks just then."""

    def __init__(self, ledger: Ledger) -> None:
        self.left = 0
        self.skip = 0  # so many are answered before
        self.happened = 0
        self._commit = ledger.engine.dialect.do_commit

    def commit(self, driver: Any) -> None:
        self._commit(driver)
        if not self.left:
            return
        if self.skip:
            self.skip -= 1
            return
        self.left -= 1
        self.happened += 1
        if isinstance(driver.driver_connection, sqlite3.Connection):
            raise sqlite3.OperationalError("disk I/O error")
        driver.driver_connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")


@pytest.fixture
def silence(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Silence:
    silence = Silence(ledger)
    monkeypatch.setattr(ledger.engine.dialect, "do_commit", silence.commit)
    return silence


@pytest.fixture
def writer(ledger: Ledger, clock: FakeClock) -> Iterator[GroupWriter]:
    writer = GroupWriter(ledger, worker_id="w1", endpoint=ENDPOINT, clock=clock, window_s=0.002)
    writer.start()
    yield writer
    assert writer.stop(10)


@pytest.mark.parametrize("in_a_row", [1, 2, 3])
def test_a_claim_is_one_claim_however_often_its_commit_is_not_answered(
    ledger: Ledger, silence: Silence, writer: GroupWriter, in_a_row: int
) -> None:
    id_ = put_one(ledger)
    silence.left = in_a_row
    job = claimed(writer, id_)
    assert silence.happened == in_a_row
    assert (job.number, job_row(ledger, id_).claims) == (1, 1)
    assert writer.open_claims == {id_: job.token}
    assert writer.call(lambda c: release_orphans(c, "w1", open_claims=writer.open_claims, now_ms=NOW)) == []
    assert writer.record(success(job)) is Recorded.APPLIED


def test_a_record_is_one_record_although_its_commit_is_not_answered(
    ledger: Ledger, silence: Silence, writer: GroupWriter
) -> None:
    job = claimed(writer, put_one(ledger))
    silence.left = 1
    assert writer.record(success(job)) is Recorded.REPEATED
    assert (len(rows(ledger, "results")), len(rows(ledger, "usage"))) == (1, 1)
    assert writer.open_claims == {}


@pytest.mark.parametrize("how", ["wait", "fail", "give back"])
def test_a_setback_counts_once_although_its_commit_is_not_answered(
    ledger: Ledger, silence: Silence, writer: GroupWriter, how: str
) -> None:
    job = claimed(writer, put_one(ledger))
    silence.left = 1
    writer.record(
        {"wait": setback(job, not_before_ms=NOW + 9), "fail": setback(job), "give back": give_back(job)}[how]
    )
    row = job_row(ledger, job.id)
    expected = {"wait": ("waiting", 1), "fail": ("failed", 1), "give back": ("queued", 0)}[how]
    assert (row.state, row.attempts) == expected
    assert len(rows(ledger, "attempts")) == 1
    assert writer.open_claims == {}


def test_a_claim_in_one_group_with_a_beat_is_called_once_although_its_commit_is_not_answered(
    ledger: Ledger, silence: Silence, writer: GroupWriter
) -> None:
    ids = [job.id for job in put(ledger, a_job(), a_job())]

    beats = []

    def beat(connection: Any) -> list[str]:
        beats.append(connection)
        silence.left = int(len(beats) == 1)  # the commit of this very group
        return release_orphans(connection, "w1", open_claims=writer.open_claims, now_ms=NOW)

    with in_one_group(writer):
        beating = writer.begin(beat)
        claims = [start_claim(writer, id_) for id_ in ids]
    released, jobs = beating.result(), [claim.result() for claim in claims]
    # The second try's beat found them running and not in memory, and the claim after it took them again.
    assert sorted(released) == sorted(ids)
    assert {job.id: job.token for job in jobs} == writer.open_claims
    assert [state(ledger, id_) for id_ in ids] == ["running"] * 2
    assert [writer.record(success(job)) for job in jobs] == [Recorded.APPLIED] * 2


class Broker:
    """A broker that forgets nothing, and what it was given."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def publish(self, due: Sequence[Due]) -> None:
        self.taken += [job.id for job in due]

    def is_present(self) -> bool:
        return True

    def set(self) -> None:
        """It is set already."""

    def is_empty(self) -> bool:
        return False

    def fetch_lying_jobs(self, at_most: int) -> frozenset[str]:
        return frozenset()


@pytest.mark.parametrize("nth", range(4))
def test_jobs_that_a_relay_took_are_published_although_its_commit_is_not_answered(
    ledger: Ledger, silence: Silence, clock: FakeClock, nth: int
) -> None:
    ids = [job.id for job in put(ledger, *[a_job(batch_id="b") for _ in range(5)], now_ms=clock.now_ms())]
    broker = Broker()
    gatekeeper = Gatekeeper(MemoryGateStore(), clock, probe_ttl_s=60.0)
    relay = Relay(ledger, broker.publish, broker, gatekeeper, clock, endpoint=ENDPOINT, republish_after_s=300)
    silence.skip, silence.left = nth, 1
    with suppress(DatabaseAway):
        relay.tick()
    silence.skip = silence.left = 0
    clock.advance(0.01)
    relay.tick()
    assert set(broker.taken) == set(ids)


def start_claim(writer: GroupWriter, id_: str) -> Any:
    reply: Reply[ClaimedJob | None] = Reply()
    writer._put(ClaimJob(id_, reply))
    return reply
