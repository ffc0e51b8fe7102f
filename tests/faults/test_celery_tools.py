"""Celery's own tools while jobs are queued and running. Invariant 1: what they do to the broker, the ledger mends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy import select

from tests.support.arena import Arena
from worker.broker.hints import BULK_QUEUE
from worker.storage.tables import is_published, jobs

CLAIMED_WITHIN_S = 10.0
WORKERS = 2


def begin(arena: Arena) -> None:
    """Starts two workers and returns in the middle of their run."""
    slots = arena.size(32, 8)
    arena.queue(arena.size(2000, 320))
    for _ in range(WORKERS):
        arena.worker(concurrency=slots)
    arena.wait_for(lambda: arena.ended() > slots, "the run is in its middle")


def celery(arena: Arena, *args: str) -> str:
    """What `celery -A worker …` prints; it must end with 0."""
    done = arena.shop.begin("celery", "-A", "worker", *args, log="celery.log")
    code = done.wait(30)
    said = (arena.folder / "celery.log").read_text()
    assert code == 0, said
    return said


def job_ids(arena: Arena, *states: str) -> list[str]:
    """Jobs in one of these states, in the order in which they were written down."""
    with arena.ledger.read() as connection:
        query = select(jobs.c.id).where(jobs.c.state.in_(states)).order_by(jobs.c.position)
        return list(connection.execute(query).scalars())


def published(arena: Arena) -> list[str]:
    """Jobs whose message lies in the broker, as far as the ledger knows, or in a worker's hand."""
    with arena.ledger.read() as connection:
        return list(connection.execute(select(jobs.c.id).where(is_published())).scalars())


def time_until_claimed(arena: Arena, lost: Sequence[str]) -> float:
    """Seconds until all these jobs, whose messages are gone, have been claimed."""
    return arena.wait_for(lambda: not set(lost) & set(job_ids(arena, "queued")), "the lost are claimed")


@pytest.mark.full
@pytest.mark.simulator(
    "--latency", "0.6"
)  # the last are still queued when a slow start of `celery` has come to them
def test_revoked_jobs_are_cancelled_and_stay_so(arena: Arena) -> None:
    begin(arena)
    running = job_ids(arena, "running")[:10]
    queued = job_ids(arena, "queued")[-100:]
    celery(arena, "control", "revoke", *running, *queued)
    arena.wait_for(
        lambda: set(queued) <= set(job_ids(arena, "cancelled")), "all that were queued are cancelled"
    )
    arena.wait_for(lambda: arena.ended() == arena.queued, "all jobs end", within_s=60)
    cancelled = job_ids(arena, "cancelled")
    assert set(queued) <= set(cancelled) <= {*queued, *running}
    assert not set(cancelled) & set(arena.simulator.calls()), "nobody paid for them"
    arena.conclude("celery control revoke", most_extra_calls=0, failures=len(cancelled))


@pytest.mark.full
@pytest.mark.simulator(
    "--latency", "0.3"
)  # messages lie there still when a slow start of `celery` has come to them
def test_purged_messages_are_published_again(arena: Arena) -> None:
    begin(arena)
    assert "Purged" in celery(arena, "purge", "-f")
    recover_s = time_until_claimed(arena, published(arena))
    arena.conclude("celery purge", most_extra_calls=0, recover_s=recover_s)
    assert recover_s < CLAIMED_WITHIN_S


@pytest.mark.storm  # in small, the purge above is the same
def test_a_deleted_queue_is_filled_again(arena: Arena) -> None:
    """Its lists are deleted by hand: `celery amqp queue.delete` deletes only what its own process has declared."""
    begin(arena)
    with arena.valkey.client() as client:
        assert client.delete(*client.keys(f"{BULK_QUEUE}.*")) > 0
    recover_s = time_until_claimed(arena, published(arena))
    arena.conclude("broker's queue deleted", most_extra_calls=0, recover_s=recover_s)
    assert recover_s < CLAIMED_WITHIN_S
