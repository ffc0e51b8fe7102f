"""Machines that are suspended, and clocks that disagree. Leases compare sequence numbers, never two clocks."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from sqlalchemy import func, select

from tests.support.arena import LEASE_S, Arena
from tests.support.processes import Process
from worker.storage.tables import attempts, jobs, usage

# Imported by Python at its start, before anything else: this process's wall clock is wrong, its monotonic one right.
_SHIFTED_CLOCK = """
import time
_shift_s = {shift_s!r}
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _shift_s
time.time_ns = lambda: _time_ns() + int(_shift_s * 1_000_000_000)
"""


def _shifted_clock(arena: Arena, shift_s: float) -> Path:
    """A folder that shifts the wall clock of each Python process that has it in its path."""
    folder = arena.folder / f"clock{shift_s:+g}"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SHIFTED_CLOCK.format(shift_s=shift_s))
    return folder


def _outcomes(arena: Arena) -> dict[str, int]:
    with arena.ledger.read() as connection:
        rows = connection.execute(select(attempts.c.outcome, func.count()).group_by(attempts.c.outcome))
        return {row.outcome: row[1] for row in rows}


def _burnt(arena: Arena) -> int:
    with arena.ledger.read() as connection:
        return connection.execute(select(func.sum(jobs.c.attempts))).scalar_one()


def _suspend(arena: Arena, worker: Process) -> int:
    """Suspends it past its lease, until another has taken over; the number of jobs it had in hand."""
    worker.send_signal(signal.SIGSTOP)
    arena.wait_for(lambda: arena.is_stopped(worker), "it stands still")
    return arena.held_by(worker)


@pytest.mark.simulator("--latency", "1.0")
@pytest.mark.timeout(120)
def test_a_late_success_counts_if_there_is_none_yet_and_is_kept_as_usage_otherwise(arena: Arena) -> None:
    """Half of the suspended worker's jobs have ended elsewhere when it wakes; the others wait and have not."""
    slots = arena.size(60, 8)
    arena.queue(slots * 2)
    sleeper = arena.worker(concurrency=slots)
    arena.wait_for(lambda: arena.in_flight() == slots, "all slots are in a call")
    in_hand = _suspend(arena, sleeper)
    arena.wait_for(lambda: arena.simulator.stats()["paid"] == slots, "its calls are answered meanwhile")
    # Fewer slots than jobs: when the sleeper wakes, some of its jobs are in a call elsewhere and some wait.
    arena.worker(concurrency=slots // 2, lone_slots=0)
    recover_s = arena.wait_for(lambda: "worker.lost" in arena.worker_log(), "it is taken for lost")
    assert recover_s < 2 * LEASE_S + 1
    arena.wait_for(lambda: arena.extra_calls() >= slots // 4, "some of its calls are made again")
    sleeper.send_signal(signal.SIGCONT)
    figures = arena.conclude(
        "suspended past its lease, late successes",
        most_extra_calls=in_hand,
        recover_s=recover_s,
        may_be_unused=in_hand,
    )
    outcomes = _outcomes(arena)
    paid = arena.simulator.stats()["paid"]
    with arena.ledger.read() as connection:
        used = connection.execute(select(func.count()).where(usage.c.is_used)).scalar_one()
    assert used == arena.queued
    arena.wait_for(
        lambda: _outcomes(arena).get("unused", 0) == paid - arena.queued, "usage of all that was paid"
    )
    with arena.ledger.read() as connection:
        every = connection.execute(select(func.count()).select_from(usage)).scalar_one()
    assert every == paid > arena.queued
    assert figures.extra_calls < in_hand, "the others' late successes counted"
    assert outcomes["succeeded"] == arena.queued


@pytest.mark.simulator("--latency", "1.0")
@pytest.mark.timeout(120)
def test_a_late_failure_changes_nothing(arena: Arena) -> None:
    """The sleeper's calls were refused. When it wakes, their jobs are others'."""
    slots = arena.size(60, 8)
    arena.queue(slots * 2)
    arena.simulator.set_faults(rate_500=1.0)
    sleeper = arena.worker(concurrency=slots, backoff_base_s=2)
    arena.wait_for(lambda: arena.in_flight() >= slots // 2, "many are in a call")
    in_hand = _suspend(arena, sleeper)
    assert in_hand > 0
    allowed = in_hand + _burnt(arena)  # what is in hand and not called yet will be, when it wakes
    arena.wait_for(lambda: arena.in_flight() == 0, "all of its calls are refused")
    arena.simulator.set_faults(rate_500=0.0)
    arena.worker(concurrency=slots)
    recover_s = arena.wait_for(lambda: "worker.lost" in arena.worker_log(), "it is taken for lost")
    arena.wait_for(lambda: arena.ended() == arena.queued, "the other has done all")
    before, burnt = _outcomes(arena), _burnt(arena)
    sleeper.send_signal(signal.SIGCONT)
    beats = arena.beats_of(sleeper)
    arena.wait_for(lambda: arena.beats_of(sleeper) > beats + 1, "it beats again")
    arena.conclude("suspended past its lease, late failures", most_extra_calls=allowed, recover_s=recover_s)
    assert arena.states() == {"succeeded": arena.queued}
    assert _outcomes(arena).get("succeeded") == before.get("succeeded") == arena.queued
    assert _burnt(arena) == burnt


@pytest.mark.full
@pytest.mark.parametrize("shift_s", [90.0, -90.0])
@pytest.mark.simulator("--latency", "0.2", "--rate-500", "0.3")
@pytest.mark.settings(max_attempts=50, backoff_base_s=0.1, backoff_cap_s=0.5)
@pytest.mark.timeout(400)
def test_clocks_90_s_apart(arena: Arena, shift_s: float) -> None:
    """Nobody is taken for dead, retries come, nothing is lost: leases are no times of day.

    A retry that the fast one puts off is due when the slowest relay says so, or at once by the fast one's own.
    """
    if not arena.is_full and (arena.database != "sqlite" or shift_s < 0):
        pytest.skip("runs with --storm")
    slots = arena.size(30, 6)
    right = arena.worker(concurrency=slots)
    wrong = arena.worker(concurrency=slots, python_path=_shifted_clock(arena, shift_s))
    arena.queue(arena.size(400, 60))  # both take some of them: `worker` returns when it is ready
    recover_s = arena.wait_for_progress()
    arena.wait_for(lambda: arena.ended() == arena.queued, "all jobs end", within_s=60)
    retries = arena.simulator.stats()["faults"]["500"]
    arena.conclude(f"clocks {shift_s:+g} s apart", most_extra_calls=retries, recover_s=recover_s)
    assert retries > 0
    log = arena.worker_log()
    assert "worker.died" not in log and "worker.lost" not in log, "nobody was taken for dead"
    assert (right.poll(), wrong.poll()) == (None, None)
    with arena.ledger.read() as connection:
        assert connection.execute(select(jobs.c.id).where(jobs.c.losses > 0)).all() == []
        shifted = connection.execute(
            select(func.max(attempts.c.ended_at_ms) - func.min(attempts.c.ended_at_ms))
        ).scalar_one()
    assert shifted > 60_000, "both clocks have written"
