"""Workers that are killed. Invariants 1, 3 and 4: every job ends once, and only calls in flight are made again."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import func, select

from tests.support.arena import LEASE_S, Arena
from tests.support.processes import Process
from worker.storage.tables import attempts, jobs


def kill_one_of_two(arena: Arena, fault: str, *, finds: str, **settings: object) -> None:
    """kill -9 with most slots of the victim in a call; `finds` is how the other says that it has found it."""
    slots = arena.size(100, 16)
    first, _ = arena.worker(concurrency=slots, **settings), arena.worker(concurrency=slots)
    arena.queue(arena.size(1000, 120))
    arena.wait_for(
        lambda: arena.ended() > slots and arena.held_by(first) >= slots * 0.8,
        "the run is in its middle, for both",
    )
    in_flight = arena.kill(first)
    recover_s = arena.wait_for(lambda: arena.held_by(first) == 0, "its jobs go on", within_s=2 * LEASE_S)
    arena.wait_for(lambda: finds in arena.worker_log(), "the other has found it", within_s=5)
    arena.conclude(fault, most_extra_calls=in_flight, recover_s=recover_s, is_paid_kept=False)


@pytest.mark.both_databases
@pytest.mark.simulator("--latency", "0.5")
def test_kill_9_in_mid_run(arena: Arena) -> None:
    kill_one_of_two(arena, "worker kill -9", finds="worker.died")


@pytest.mark.simulator("--latency", "0.5")
def test_kill_9_on_another_machine(arena: Arena) -> None:
    """Nobody sees its lock there: only its lease tells."""
    kill_one_of_two(arena, "worker kill -9, elsewhere", finds="worker.lost", home=arena.folder / "elsewhere")


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.5")
@pytest.mark.timeout(400)
def test_a_storm_of_kills_one_a_second(arena: Arena) -> None:
    """Nobody innocent ends `worker_lost`, though some were lost with their worker several times."""
    slots, kills = arena.size(50, 8), arena.size(10, 2)
    steady = arena.worker(concurrency=slots)
    # A few at a time: a dozen that start together would starve whatever else runs on two cores.
    victims = [arena.begin_worker(concurrency=slots) for _ in range(min(3, kills))]
    arena.wait_for(
        lambda: arena.worker_log().count("ready.") == 1 + len(victims), "all are ready", within_s=60
    )
    arena.queue(arena.size(4000, 200))
    pause = threading.Event()
    allowed = 0
    for round_ in range(kills):
        victim = victims[round_]
        arena.wait_for(lambda victim=victim: arena.held_by(victim) >= slots // 2, "it is at work")
        allowed += arena.kill(victim)
        if len(victims) < kills:
            victims.append(arena.begin_worker(concurrency=slots))
        pause.wait(1.0)  # the storm's own beat, not a wait for something
    assert arena.ended() < arena.queued, "the storm was over before the work"
    recover_s = arena.wait_for(
        lambda: not any(arena.held_by(victim) for victim in victims), "their jobs go on", within_s=2 * LEASE_S
    )
    for _ in range(3):  # those that were lost twice run alone, one at a time in a process
        arena.begin_worker(concurrency=slots)
    arena.conclude(
        f"worker kill -9, {kills} times",
        most_extra_calls=allowed,
        recover_s=recover_s,
        within_s=300,
        is_paid_kept=False,
    )
    assert steady.poll() is None
    with arena.ledger.read() as connection:
        most = connection.execute(select(func.max(jobs.c.losses))).scalar_one()
        assert connection.execute(select(jobs.c.id).where(jobs.c.solo_losses > 2)).all() == []
    if arena.is_full:
        assert most >= 2, "nobody was lost twice"


@pytest.mark.simulator("--latency", "1")  # long enough for the killer to come before the answer
@pytest.mark.timeout(240)
def test_a_job_that_kills_its_worker_each_time_fails_and_the_others_are_untouched(arena: Arena) -> None:
    """As under a supervisor: whenever the worker dies, another starts. Nothing but the poison ends otherwise."""
    slots = arena.size(30, 6)
    arena.queue(arena.size(300, 24))
    with arena.ledger.read() as connection:
        poison = connection.execute(select(jobs.c.id).order_by(jobs.c.id).offset(2).limit(1)).scalar_one()
    allowed = deaths = seen = 0
    worker: Process | None = None

    def is_called_again() -> bool:
        return arena.calls_of(poison) > seen

    def has_failed() -> bool:
        with arena.ledger.read() as connection:
            state = connection.execute(select(jobs.c.state).where(jobs.c.id == poison)).scalar_one()
        return str(state) == "failed"

    while True:
        worker = arena.worker(concurrency=slots)
        arena.wait_for(lambda: is_called_again() or has_failed(), "the poison is called, or has failed")
        if has_failed():
            break
        seen = arena.calls_of(poison)
        allowed += arena.kill(worker)
        deaths += 1
        assert deaths <= 5, "it is never given up"
    arena.conclude("poison job", most_extra_calls=allowed, failures=1, is_paid_kept=False)
    with arena.ledger.read() as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == poison)).one()
        others = connection.execute(select(jobs.c.solo_losses).where(jobs.c.id != poison)).scalars().all()
        lost = connection.execute(
            select(attempts.c.outcome).where(attempts.c.job_id == poison).order_by(attempts.c.number)
        ).scalars()
        assert list(lost) == ["lost"] * deaths
    assert (row.state, row.failure_kind) == ("failed", "worker_lost")
    assert deaths == 5, "two in company, and three alone"
    assert set(others) == {0}, "nobody else was there when it ran alone"


@pytest.mark.storm
@pytest.mark.simulator("--latency", "0.4")
@pytest.mark.timeout(180)
def test_a_worker_killed_while_its_relay_publishes(arena: Arena) -> None:
    """Marked as published and not in the broker, or in it twice: either way nothing waits, and nothing is paid twice."""
    slots, rounds = 32, 6
    arena.queue(1500)
    allowed = 0
    for _ in range(rounds):
        marked_at = arena.last_published_ms()
        victim = arena.worker(concurrency=slots)
        end_s = time.monotonic() + 20
        while arena.last_published_ms() == marked_at:  # no pause: what follows the commit takes a millisecond
            assert time.monotonic() < end_s, "the relay publishes nothing"
        allowed += arena.kill(victim)
    arena.worker(concurrency=slots)
    recover_s = arena.wait_for_progress(within_s=2 * LEASE_S)
    arena.conclude(
        "worker kill -9 as it publishes", most_extra_calls=allowed, recover_s=recover_s, is_paid_kept=False
    )
