"""An endpoint that is away for a while, with default settings and two workers: no job fails, few calls are made
meanwhile, and work is at full speed within seconds of its return. The short forms, on a fake clock, are in
`tests/contract/test_ledger_outages.py` and `tests/unit/test_outages_simulated.py`."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from tests.support.arena import Arena
from worker.storage.tables import jobs

LATENCY_S = 0.5
WORKERS = 2
SLOTS = 16  # of each, fixed: a limit that is still growing has no speed to come back to
FULL = 0.85  # of the speed before the outage: what two seconds of a busy machine leave of it
WITHIN_S = 10.0


class Speed:
    """How many jobs had succeeded, over time."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._seen: list[tuple[float, int]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._is_over.wait(0.1):
            self._seen.append((time.monotonic(), self._arena.count("succeeded")))

    def end(self) -> None:
        self._is_over.set()
        self._thread.join(10)

    def rate(self, begin_s: float, end_s: float) -> float:
        """Successes a second between two moments."""
        first = next(found for found in self._seen if found[0] >= begin_s)
        last = next(found for found in reversed(self._seen) if found[0] <= end_s)
        return (last[1] - first[1]) / (last[0] - first[0])

    def full_after(self, moment_s: float, wanted: float) -> float:
        """Seconds from `moment_s` until two seconds began in which the speed was as wanted."""
        for at_s, _ in self._seen:
            if at_s >= moment_s and self._seen[-1][0] >= at_s + 2 and self.rate(at_s, at_s + 2) >= wanted:
                return at_s - moment_s
        return float("inf")


def go_away(arena: Arena, how: str) -> Callable[[], None]:
    """Begins the outage; what ends it."""
    if how == "refused":
        arena.simulator.kill()
        return arena.simulator.restart
    if how == "hanging":
        process = arena.simulator._process
        process.send_signal(signal.SIGSTOP)
        return lambda: process.send_signal(signal.SIGCONT)
    arena.simulator.set_faults(outage_status=int(how))
    return lambda: arena.simulator.set_faults(outage_status=None)


def calls(arena: Arena) -> int:
    return sum(int(call["received"]) for call in arena.simulator.calls().values())


def sit_through(arena: Arena, how: str, away_s: float) -> None:
    """One outage in the middle of a run, and what it came to."""
    speed_ceiling = WORKERS * SLOTS / LATENCY_S
    arena.queue(round(speed_ceiling * 30))
    for _ in range(WORKERS):
        arena.worker(concurrency=SLOTS)
    arena.wait_for(lambda: arena.count("succeeded") > 2 * SLOTS, "the run is in its middle")
    speed = Speed(arena)
    began_s = time.monotonic()
    threading.Event().wait(2.5)
    before = speed.rate(began_s + 0.5, began_s + 2.5)
    come_back = go_away(arena, how)
    away_began_s = time.monotonic()
    # The first second is that of the calls in flight, and of those that begin before the first of them fails.
    threading.Event().wait(1.0 + LATENCY_S)
    is_readable = how not in ("refused", "hanging")  # of the others nothing is received at all
    at_first = calls(arena) if is_readable else 0
    threading.Event().wait(away_began_s + away_s - time.monotonic())
    meanwhile = calls(arena) - at_first if is_readable else 0
    come_back()
    returned_s = time.monotonic()
    wanted = FULL * before
    arena.wait_for(
        lambda: speed.full_after(returned_s, wanted) <= WITHIN_S,
        "work is at full speed again",
        within_s=WITHIN_S + 4,
    )
    speed.end()
    full_s = speed.full_after(returned_s, wanted)
    probes = meanwhile if is_readable else arena.worker_log().count("job.waiting")
    print(
        f"\n{how} for {away_s:g} s: {meanwhile} calls after the first second (waits logged: {probes}), "
        f"{before:.0f} jobs/s before, full speed after {full_s:.1f} s"
    )
    assert meanwhile <= away_s, f"{meanwhile} calls in {away_s} s"
    in_flight = WORKERS * (SLOTS + 1)
    # One for each probe, those in flight when it began, and those that began before the third of them had failed.
    arena.conclude(
        f"endpoint {how} for {away_s:g} s",
        most_extra_calls=round(away_s) + 3 * in_flight,
        recover_s=full_s,
        within_s=240,
        is_paid_kept=how != "refused",  # one that is killed has told its counts a moment before
    )
    with arena.ledger.read() as connection:
        burnt = connection.execute(select(func.max(jobs.c.attempts))).scalar_one()
    assert burnt <= 1, "who failed before the gate closed has burnt one attempt"
    assert arena.worker_log().count("gate.shut") <= WORKERS * 12, "no flood of lines"


KINDS = ["503", "404", "504", "refused", "hanging"]


@pytest.mark.storm
@pytest.mark.simulator("--latency", str(LATENCY_S))
@pytest.mark.timeout(400)
@pytest.mark.parametrize("away_s", [15.0, 60.0])
@pytest.mark.parametrize("how", KINDS)
def test_an_outage_of_any_kind_fails_no_job_and_is_hardly_called_into(
    arena: Arena, how: str, away_s: float
) -> None:
    sit_through(arena, how, away_s)


@pytest.mark.storm
@pytest.mark.simulator("--latency", str(LATENCY_S))
@pytest.mark.timeout(700)
@pytest.mark.parametrize("how", ["503", "404", "504", "hanging"])
def test_an_outage_of_five_minutes_fails_no_job(arena: Arena, how: str) -> None:
    sit_through(arena, how, 300.0)
