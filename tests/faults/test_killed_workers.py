"""Workers that are killed. Invariants 1, 3 and 4: every job ends once, and only calls in flight are made again."""

from __future__ import annotations

import threading

import pytest

from tests.support.arena import LEASE_S, Arena


@pytest.mark.simulator("--latency", "0.5")
def test_kill_9_in_mid_run(arena: Arena) -> None:
    slots = arena.size(100, 16)
    arena.queue(arena.size(600, 80))
    first = arena.worker(concurrency=slots)
    arena.wait_for(lambda: arena.ended() > slots, "the run is in its middle")
    arena.worker(concurrency=slots)
    in_flight = arena.kill(first)
    recover_s = arena.wait_for(lambda: "heart.worker_died" in arena.worker_log(), "the dead is found")
    assert recover_s < 2 * LEASE_S
    arena.conclude("worker kill -9", most_extra_calls=in_flight, recover_s=recover_s)


@pytest.mark.simulator("--latency", "0.5")
@pytest.mark.timeout(240)
def test_a_storm_of_kills_one_a_second(arena: Arena) -> None:
    slots, kills = arena.size(50, 8), arena.size(10, 3)
    arena.queue(arena.size(1200, 240))
    steady = arena.worker(concurrency=slots)
    pause = threading.Event()
    allowed = 0
    for _ in range(kills):
        victim = arena.worker(concurrency=slots)
        pause.wait(1.0)  # the storm's own beat, not a wait for something
        allowed += arena.kill(victim)
    recover_s = arena.wait_for_progress(within_s=4 * LEASE_S)
    figures = arena.conclude(
        f"worker kill -9, {kills} times", most_extra_calls=allowed, recover_s=recover_s, within_s=180
    )
    assert steady.poll() is None
    assert figures.lost == 0
