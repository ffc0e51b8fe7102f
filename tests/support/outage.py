"""What is asked of an arena whose database goes away: that nothing is called meanwhile, and nobody is taken for dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy import func, select

from tests.support.arena import Arena
from worker.errors import AntreanError
from worker.storage.tables import attempts, jobs


def now_ms() -> int:
    """The clock that workers on this machine write into the ledger."""
    return time.time_ns() // 1_000_000


def calls_made(arena: Arena) -> int:
    """Calls that the endpoint has received of all jobs."""
    return sum(int(call["received"]) for call in arena.simulator.calls().values())


def wait_for_last_call(arena: Arena, *, quiet_s: float = 2.0) -> int:
    """Waits until no call is in flight, and none has begun for `quiet_s`; how many there were.

    Where one call has ended and the next, of a job that was claimed ahead, has not begun, none is in flight.
    """
    made, since_s = -1, time.monotonic()

    def is_quiet() -> bool:
        nonlocal made, since_s
        found = calls_made(arena)
        if found != made or arena.in_flight():
            made, since_s = found, time.monotonic()
        return time.monotonic() - since_s >= quiet_s

    arena.wait_for(is_quiet, "the calls of what was claimed end", within_s=20 + quiet_s)
    return made


def stay_away(arena: Arena, for_s: float) -> None:
    """Waits until all that was claimed is called, and `for_s` more, in which no call may be made."""
    made = wait_for_last_call(arena)
    threading.Event().wait(for_s)  # the outage's own length
    assert calls_made(arena) == made, "calls were made without a claim"


def come_back(
    arena: Arena, end_outage: Callable[[], object], *, within_s: float = 30.0, is_a_blow: bool = False
) -> float:
    """Ends the outage; seconds from then until the next claim. With --storm, until every worker has.

    `is_a_blow`: the outage has no length, so that claims from before its end do not count.
    """
    began_ms = now_ms()
    end_outage()
    returned_ms = now_ms()
    began_ms = returned_ms if is_a_blow else began_ms
    arena.ledger.dispose()  # the connections of this process are from before
    if is_a_blow:
        arena.queue(arena.size(100, 20))  # all others may have been claimed before it came

    def find_claim() -> int | None:
        try:
            with arena.ledger.read() as connection:
                first: int | None = connection.execute(
                    select(func.min(jobs.c.claimed_at_ms)).where(jobs.c.claimed_at_ms >= began_ms)
                ).scalar_one()
        except AntreanError:
            return None
        return first

    arena.wait_for(lambda: find_claim() is not None, "claiming resumes", within_s=within_s)
    recover_s = max(0, (find_claim() or 0) - returned_ms) / 1000
    if arena.is_full:
        arena.wait_for_every_worker()
    return recover_s


def spooled(arena: Arena) -> int:
    """Answers that went to a spool."""
    return arena.worker_log().count("result.spooled")


def assert_nobody_was_lost(arena: Arena) -> None:
    """No lease expired: no attempt was lost, no worker was taken for dead; nor did one take a fault for its own."""
    with arena.ledger.read() as connection:
        lost = connection.execute(select(func.count()).where(attempts.c.outcome == "lost")).scalar_one()
        given_up = connection.execute(
            select(func.count()).where(jobs.c.failure_kind == "worker_lost")
        ).scalar_one()
    assert (lost, given_up) == (0, 0)
    for event in (
        "worker.lost",
        "worker.died",
        "worker.thread_died",
        "job.defect",
        "spool.rejected",
    ):
        assert event not in arena.worker_log()
