"""A queue for each ledger and endpoint: who reads what, and what becomes of hints that went astray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.ledger import ENDPOINT, a_job, claim_one, job_row, put, state
from worker.broker.client import BrokerEpoch, count_messages
from worker.broker.hints import (
    BULK_QUEUE,
    HINT_MARK,
    LONE_QUEUE,
    is_bulk_queue,
    list_key,
    list_keys,
    queues_of,
    write_hint,
)
from worker.storage.engine import Ledger
from worker.storage.identity import fetch_identity
from worker.storage.workers import register_worker
from worker.storage.writer import GroupWriter
from worker.upkeep.heartbeat import Heartbeat
from worker.upkeep.presence import Presence
from worker.upkeep.spool import SpoolFile

ELSEWHERE = "https://elsewhere.test"


def test_each_ledger_and_each_endpoint_has_queues_of_its_own() -> None:
    named = [queues_of(ledger, endpoint) for ledger in ("one", "two") for endpoint in (ENDPOINT, ELSEWHERE)]
    assert len({name for queues in named for name in queues.names}) == 8
    assert queues_of("one", ENDPOINT) == named[0]
    assert all(is_bulk_queue(queues.bulk) and not is_bulk_queue(queues.lone) for queues in named)
    assert not any("://" in name for queues in named for name in queues.names)


@pytest.mark.parametrize("name", [LONE_QUEUE, "celery.x", "antrean.bulkhead", "", None, 7, ["antrean.bulk"]])
def test_what_is_no_bulk_queue(name: object) -> None:
    assert not is_bulk_queue(name)


def test_the_queue_of_older_versions_is_one_of_bulk() -> None:
    assert is_bulk_queue(BULK_QUEUE)


def test_a_ledger_is_the_same_for_all_who_open_it_and_another_is_another(
    ledger: Ledger, sqlite_ledger: Ledger, tmp_path: Path
) -> None:
    def identity(of: Ledger) -> str:
        with of.read() as connection:
            return fetch_identity(connection)

    assert identity(ledger) == identity(ledger) != ""
    from tests.conftest import _settings  # local: a new home is only made here
    from worker.storage.engine import open_ledger
    from worker.storage.migrating import migrate

    other = open_ledger(_settings(tmp_path / "another"))
    migrate(other)
    assert identity(other) not in (identity(ledger), identity(sqlite_ledger))
    other.dispose()


def test_messages_of_others_do_not_hide_that_ones_own_queues_are_empty(valkey: Any) -> None:
    ours, theirs = queues_of("ledger", ENDPOINT), queues_of("ledger", ELSEWHERE)
    for queue in (LONE_QUEUE, BULK_QUEUE, *theirs.names):
        valkey.lpush(list_key(queue, 9), "x")
    epoch = BrokerEpoch(valkey, ENDPOINT, ours)
    assert epoch.is_empty()
    for number, queue in enumerate(ours.names):
        valkey.lpush(list_keys(queue)[number], "x")
        assert not epoch.is_empty()
        valkey.delete(list_keys(queue)[number])
    assert count_messages(valkey, theirs.names) == 2
    assert count_messages(valkey) == 2


def test_the_jobs_whose_hints_lie_in_ones_own_queues_are_known_whatever_else_lies_there(valkey: Any) -> None:
    ours, theirs = queues_of("ledger", ENDPOINT), queues_of("ledger", ELSEWHERE)
    epoch = BrokerEpoch(valkey, ENDPOINT, ours)
    assert epoch.fetch_lying_jobs(9) == set()
    for number, queue in enumerate((*ours.names, *theirs.names)):
        for priority in (0, 9):
            hint = write_hint(f"{number}-{priority}", queue=queue, priority=priority)
            valkey.lpush(list_key(queue, priority), hint)
    for odd in (
        b"x",
        HINT_MARK,
        b"[" + HINT_MARK + b"]",
        b"{" + HINT_MARK + b"}",
        b'{"headers":{"id":"not"}}',
    ):
        valkey.rpush(list_key(ours.bulk, 9), odd)
    assert epoch.fetch_lying_jobs(9) == {"0-0", "0-9", "1-0", "1-9"}
    assert epoch.fetch_lying_jobs(1) == {"0-0", "0-9", "1-0"}, "those that are taken next"


def test_a_hint_of_another_endpoint_is_published_again_for_its_own_at_once(
    ledger: Ledger, clock: FakeClock
) -> None:
    """An older version put the hints of all endpoints into one queue."""
    now_ms = clock.now_ms()
    theirs, ours = put(ledger, a_job(endpoint=ELSEWHERE), a_job(), published_at_ms=now_ms)
    claimed_there = put(ledger, a_job(endpoint=ELSEWHERE), published_at_ms=now_ms)[0]
    claim_one(ledger, claimed_there.id, endpoint=ELSEWHERE)
    writer = GroupWriter(ledger, worker_id="me", endpoint=ENDPOINT, clock=clock, window_s=0.0)
    writer.start()
    try:
        assert writer.claim(theirs.id) is None
        assert writer.claim(claimed_there.id) is None
        assert writer.claim(ours.id) is not None
    finally:
        assert writer.stop(10)
    row = job_row(ledger, theirs.id)
    assert (row.state, row.published_at_ms, row.claims) == ("queued", None, 0)
    assert state(ledger, claimed_there.id) == "running"


@pytest.fixture
def beat_on(clock: FakeClock, tmp_path: Path) -> Callable[[Ledger, str], None]:
    """One beat of a new worker of this home on a ledger."""

    def beat(ledger: Ledger, name: str) -> None:
        writer = GroupWriter(ledger, worker_id=name, endpoint=ENDPOINT, clock=clock, window_s=0.0)
        writer.start()
        presence = Presence(tmp_path / "workers", name)
        presence.begin()
        heartbeat = Heartbeat(
            ledger,
            writer,
            SpoolFile(tmp_path / "spool", name),
            presence,
            clock,
            endpoint=ENDPOINT,
            slots=lambda: 4,
            lease_s=2.0,
            beat_s=0.3,
            spool_folder=tmp_path / "spool",
            max_solo_losses=3,
        )
        try:
            heartbeat.beat()
            heartbeat.end()
        finally:
            assert writer.stop(10)

    return beat


def test_a_dead_worker_of_another_ledger_is_left_to_the_workers_of_that_ledger(
    ledger: Ledger,
    sqlite_ledger: Ledger,
    clock: FakeClock,
    tmp_path: Path,
    beat_on: Callable[[Ledger, str], None],
) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "dead.lock").touch()  # nobody holds it: its worker has died
    ledger.run(
        lambda c: register_worker(
            c,
            "dead",
            endpoint=ENDPOINT,
            hostname="h",
            pid=1,
            slots=4,
            lease_ms=60_000,
            now_ms=clock.now_ms(),
        )
    )
    job = claim_one(ledger, put(ledger, a_job())[0].id, worker="dead")
    beat_on(sqlite_ledger, "theirs")
    assert state(ledger, job.id) == "running"
    beat_on(ledger, "ours")
    assert state(ledger, job.id) == "queued", "at once, not after a lease"
