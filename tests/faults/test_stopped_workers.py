"""Workers that are told to stop. They end in time, give back what they cannot finish, and pay for nothing twice."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from tests.support.arena import LEASE_S, Arena
from tests.support.processes import end
from worker.storage.tables import attempts, jobs

AFTER_GRACE_S = 2.0
GRACE_S = 3.0


def _nothing(_: Arena) -> None:
    pass


def _stall(arena: Arena) -> None:
    arena.valkey.signal(signal.SIGSTOP)


def _wake(arena: Arena) -> None:
    arena.valkey.signal(signal.SIGCONT)


def _kill(arena: Arena) -> None:
    arena.valkey.kill()


def _start(arena: Arena) -> None:
    arena.valkey.start()


BROKERS = [
    pytest.param(_nothing, _nothing, "", id="broker up"),
    pytest.param(_stall, _wake, ", broker stalled", id="broker stalled"),
    pytest.param(_kill, _start, ", broker dead", id="broker dead"),
]
STOPS = [
    pytest.param((signal.SIGTERM,), id="SIGTERM"),
    pytest.param((signal.SIGINT, signal.SIGINT), id="SIGINT twice"),
    pytest.param((signal.SIGQUIT,), id="SIGQUIT"),
]


@pytest.mark.default_cases(3)
@pytest.mark.parametrize(("disturb", "mend", "where"), BROKERS)
@pytest.mark.parametrize("signals", STOPS)
@pytest.mark.simulator("--latency", "1.0")
@pytest.mark.settings(grace_s=GRACE_S)
@pytest.mark.timeout(120)
def test_a_worker_that_is_stopped_in_mid_call(
    arena: Arena,
    signals: tuple[signal.Signals, ...],
    disturb: Callable[[Arena], None],
    mend: Callable[[Arena], None],
    where: str,
) -> None:
    """SIGTERM lets calls end within the grace; a second SIGINT and SIGQUIT cut them. All give back, unburnt."""
    is_common = arena.database == "sqlite" and (where == "" or signals == (signal.SIGTERM,))
    if not arena.is_full and not is_common:
        pytest.skip("runs with --storm")
    slots = arena.size(50, 8)
    arena.queue(slots * 4)
    worker = arena.worker(concurrency=slots)
    arena.wait_for(lambda: arena.in_flight() == slots, "all slots are in a call")
    disturb(arena)
    *first, last = signals
    for number in first:
        worker.send_signal(number)
        arena.wait_for(lambda: "worker.stopping" in arena.worker_log(), "the signal is taken")
    code, seconds = end(worker, last)

    assert code == 0
    assert seconds < GRACE_S + AFTER_GRACE_S
    stats = arena.simulator.stats()
    cut = stats["abandoned"]
    if signals == (signal.SIGTERM,):
        assert cut == 0, "calls end within the grace"
        assert stats["paid"] == arena.count("succeeded") >= slots
    else:
        assert seconds < GRACE_S, "it does not sit out the grace"
        assert 0 < cut <= slots
    _assert_given_back_unburnt(arena)
    mend(arena)
    arena.worker(concurrency=slots)
    recover_s = arena.wait_for_progress()
    names = " + ".join(number.name for number in signals)
    arena.conclude(f"{names}{where}; ended in {seconds:.1f} s", most_extra_calls=cut, recover_s=recover_s)


@pytest.mark.simulator("--latency", str(3 * LEASE_S))
@pytest.mark.settings(grace_s=5 * LEASE_S)
@pytest.mark.timeout(120)
def test_a_worker_that_waits_for_its_last_calls_keeps_its_lease(arena: Arena) -> None:
    """Calls of a worker that stops may last longer than a lease: another worker that lives does not make them again."""
    slots = arena.size(50, 8)
    arena.queue(slots)
    worker = arena.worker(concurrency=slots)
    arena.wait_for(lambda: arena.in_flight() == slots, "all slots are in a call")
    arena.worker(concurrency=slots)
    code, seconds = end(worker)
    assert (code, arena.states()) == (0, {"succeeded": slots})
    assert LEASE_S < seconds < 5 * LEASE_S
    assert "worker.lost" not in arena.worker_log()
    arena.conclude("SIGTERM, calls longer than a lease", most_extra_calls=0)


@pytest.mark.simulator("--latency", "0.2")
@pytest.mark.settings(grace_s=1)
@pytest.mark.timeout(120)
def test_calls_that_outlast_the_grace_are_cut_and_made_again(arena: Arena) -> None:
    if not arena.is_full and arena.database != "sqlite":
        pytest.skip("runs with --storm")
    slots = arena.size(100, 8)
    arena.queue(slots * 2)
    arena.simulator.set_faults(rate_hang=1.0)
    worker = arena.worker(concurrency=slots)
    arena.wait_for(lambda: arena.in_flight() == slots, "all slots hang in a call")
    code, seconds = end(worker)
    assert code == 0
    assert 1.0 <= seconds < 1.0 + AFTER_GRACE_S
    assert arena.states() == {"queued": slots * 2}
    _assert_given_back_unburnt(arena)
    arena.simulator.set_faults(rate_hang=0.0)
    arena.worker(concurrency=slots)
    recover_s = arena.wait_for_progress()
    arena.conclude("SIGTERM, calls hang", most_extra_calls=slots, recover_s=recover_s)


def _assert_given_back_unburnt(arena: Arena) -> None:
    with arena.ledger.read() as connection:
        burnt = connection.execute(
            select(func.count()).where(
                jobs.c.state != "succeeded", (jobs.c.attempts > 0) | (jobs.c.losses > 0)
            )
        ).scalar_one()
        outcomes = set(connection.execute(select(attempts.c.outcome)).scalars())
    assert burnt == 0
    assert arena.count("running", "waiting") == 0
    assert outcomes <= {"succeeded", "released"}
