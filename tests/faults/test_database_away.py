"""The database goes away in mid-run. Invariant 5: what was paid for is not lost, and nothing is paid for twice."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from sqlalchemy import func, select

from tests.support.arena import LEASE_S, Arena
from tests.support.outage import (
    assert_nobody_was_lost,
    calls_made,
    come_back,
    spooled,
    stay_away,
    wait_for_last_call,
)
from tests.support.processes import Process, end
from tests.support.proxy import Proxy
from tests.support.servers import PostgresProcess
from worker.settings.database import PostgresqlAddress
from worker.storage.tables import jobs

Hang = Callable[[], Callable[[], object]]
on_postgresql = pytest.mark.parametrize(
    "arena", [pytest.param("postgresql", marks=pytest.mark.postgresql)], indirect=True
)


def server_of(arena: Arena) -> PostgresProcess:
    assert arena.postgres is not None
    return arena.postgres


def start_the_middle_of_a_run(arena: Arena, workers: int = 2, **settings: object) -> None:
    """So many workers, with most of the jobs still to do."""
    slots = arena.size(50, 8)
    arena.queue(arena.size(1000, 100))
    for _ in range(workers):
        arena.worker(concurrency=slots, **settings)
    arena.wait_for(
        lambda: arena.ended() >= slots // 2 and arena.in_flight() >= slots // 2, "the run is in its middle"
    )


@on_postgresql
@pytest.mark.simulator("--latency", "0.5")
@pytest.mark.parametrize("how", ["restarted", pytest.param("killed and started", marks=pytest.mark.storm)])
def test_postgresql_is_restarted(arena: Arena, how: str) -> None:
    server = server_of(arena)
    start_the_middle_of_a_run(arena)
    (server.stop if how == "restarted" else server.kill)()
    recover_s = come_back(arena, server.start)
    arena.conclude(f"PostgreSQL {how}", most_extra_calls=0, recover_s=recover_s)
    assert_nobody_was_lost(arena)


@pytest.mark.full
@on_postgresql
@pytest.mark.simulator("--latency", "0.5")
def test_postgresql_is_away_for_longer_than_a_lease(arena: Arena) -> None:
    server = server_of(arena)
    start_the_middle_of_a_run(arena)
    server.kill()
    stay_away(arena, arena.size(30, 3))
    assert spooled(arena) > 0
    recover_s = come_back(arena, server.start)
    arena.conclude(
        f"PostgreSQL away for {arena.size(30, 3)} s",
        most_extra_calls=0,
        recover_s=recover_s,
    )
    assert_nobody_was_lost(arena)


@on_postgresql
@pytest.mark.simulator("--latency", "0.5")
def test_all_connections_are_dropped_again_and_again(arena: Arena) -> None:
    server = server_of(arena)
    start_the_middle_of_a_run(arena)
    recovered_s = []
    for _ in range(5):

        def drop() -> None:
            with server.connect() as connection:
                dropped = connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'antrean' AND pid <> pg_backend_pid()"
                )
                assert dropped.rowcount > 0

        recovered_s.append(come_back(arena, drop, is_a_blow=True))
    arena.conclude("connections dropped, five times", most_extra_calls=0, recover_s=max(recovered_s))
    assert_nobody_was_lost(arena)


@on_postgresql
@pytest.mark.storm  # the short form is SQLite's
@pytest.mark.simulator("--latency", "0.5")
def test_postgresql_takes_no_writes_for_a_while(arena: Arena) -> None:
    """As a standby does after a failover, and an operator's hand before one."""
    server = server_of(arena)
    start_the_middle_of_a_run(arena)

    def say(value: str) -> None:
        with server.connect() as connection:
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            connection.execute("SELECT pg_reload_conf()")

    say("on")
    stay_away(arena, arena.size(10, 3))
    assert spooled(arena) > 0
    recover_s = come_back(arena, lambda: say("off"))
    arena.conclude("PostgreSQL read-only", most_extra_calls=0, recover_s=recover_s)
    assert_nobody_was_lost(arena)


@pytest.fixture
def proxy(arena: Arena) -> Iterator[Proxy]:
    """A proxy in front of PostgreSQL, below a socket of the same name."""
    server = server_of(arena)
    folder = arena.folder / "px"
    folder.mkdir()
    proxy = Proxy(str(server.socket), listen=folder / server.socket.name)
    yield proxy
    proxy.close()


def through_the_proxy(arena: Arena) -> str:
    """The address of the arena's database by way of its proxy."""
    address = arena.settings.ledger_address
    assert isinstance(address, PostgresqlAddress)
    return address.with_parameters({"host": str(arena.folder / "px")}).render()


@pytest.mark.full
@on_postgresql
@pytest.mark.simulator("--latency", "0.5")
@pytest.mark.parametrize("ends", ["goes on", pytest.param("is cut", marks=pytest.mark.storm)])
@pytest.mark.timeout(180)
def test_the_way_to_the_database_is_half_open_for_longer_than_a_lease(
    arena: Arena, proxy: Proxy, ends: str
) -> None:
    start_the_middle_of_a_run(arena, database_url=through_the_proxy(arena))
    proxy.freeze()
    stay_away(arena, arena.size(45, 3))  # past our own patience with a statement

    def end_outage() -> None:
        if ends == "is cut":
            proxy.cut()
        proxy.thaw()

    recover_s = come_back(arena, end_outage)
    arena.conclude(f"way to the database half open, then {ends}", most_extra_calls=0, recover_s=recover_s)
    assert_nobody_was_lost(arena)


@pytest.mark.full
@on_postgresql
@pytest.mark.simulator("--latency", "0.5")
def test_one_worker_of_two_is_half_open_and_what_it_held_goes_on_elsewhere(
    arena: Arena, proxy: Proxy
) -> None:
    slots = arena.size(50, 8)
    arena.queue(arena.size(1000, 140))
    arena.worker(concurrency=slots, home=arena.folder / "far", database_url=through_the_proxy(arena))
    arena.worker(concurrency=slots)
    arena.wait_for(lambda: arena.ended() >= 2 * slots, "the run is in its middle")
    proxy.freeze()
    recover_s = arena.wait_for(lambda: "worker.lost" in arena.worker_log(), "its lease expires")
    assert recover_s < 2 * LEASE_S
    arena.wait_for(
        lambda: calls_made(arena) > len(arena.simulator.calls()), "a call is made again", within_s=45
    )
    proxy.thaw()
    arena.wait_for_every_worker()
    arena.wait_for(lambda: arena.ended() == arena.queued, "all jobs end")
    with arena.ledger.read() as connection:
        again = connection.execute(select(func.sum(jobs.c.claims - 1))).scalar_one()
    assert (
        0 < again <= 3 * slots
    )  # calls in flight, answers on their way to the ledger, claims on their way back
    arena.conclude(
        "one worker's way to the database half open",
        most_extra_calls=again,
        recover_s=recover_s,
        may_be_unused=again,
    )


@pytest.fixture
def hang(arena: Arena, request: pytest.FixtureRequest) -> Iterator[Hang]:
    """Has the database take what it is asked and not answer; what it gives ends that."""
    if arena.database == "postgresql":
        proxy: Proxy = request.getfixturevalue("proxy")

        def freeze() -> Callable[[], object]:
            proxy.freeze()
            return proxy.thaw

        yield freeze
        return
    with closing(sqlite3.connect(arena.folder / "ledger.db", isolation_level=None)) as other:

        def lock() -> Callable[[], object]:
            other.execute("BEGIN IMMEDIATE")
            return lambda: other.execute("ROLLBACK")

        yield lock


def hang_in_mid_run(arena: Arena, hang: Hang) -> tuple[Process, Callable[[], object]]:
    """A worker whose calls have all been answered since its database hung; and what ends that."""
    slots = arena.size(50, 8)
    arena.queue(arena.size(400, 60))
    settings = {"database_url": through_the_proxy(arena)} if arena.database == "postgresql" else {}
    worker = arena.worker(concurrency=slots, **settings)
    arena.wait_for(
        lambda: arena.ended() >= slots and arena.in_flight() >= slots // 2, "the run is in its middle"
    )
    go_on = hang()
    wait_for_last_call(arena)
    return worker, go_on


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.5")
@pytest.mark.settings(grace_s=2)
def test_a_worker_is_stopped_while_its_database_hangs(arena: Arena, hang: Hang) -> None:
    """Its last answers are in its memory, and nobody refuses them: they go to the spool before it ends."""
    worker, go_on = hang_in_mid_run(arena, hang)
    code, seconds = end(worker)
    assert code == 0
    assert seconds < 2 + 2
    assert spooled(arena) > 0
    go_on()
    arena.worker()
    recover_s = arena.wait_for_progress()
    arena.conclude("SIGTERM while the database hangs", most_extra_calls=0, recover_s=recover_s)
    assert "spool.replayed" in arena.worker_log()


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
@pytest.mark.simulator("--latency", "0.5")
@pytest.mark.settings(grace_s=60)
@pytest.mark.timeout(120)
def test_a_worker_that_is_stopped_while_its_database_hangs_does_not_sit_out_its_grace(
    arena: Arena, hang: Hang, number: signal.Signals
) -> None:
    """Nothing can come of the claims that it waits for. Its answers are spooled after 5 s, and then it ends."""
    worker, go_on = hang_in_mid_run(arena, hang)
    code, seconds = end(worker, number)
    assert code == 0
    assert seconds < 5 + 2 + 3
    assert spooled(arena) > 0
    go_on()
    arena.worker()
    recover_s = arena.wait_for_progress()
    arena.conclude(
        f"{number.name} while the database hangs, long grace", most_extra_calls=0, recover_s=recover_s
    )
    with arena.ledger.read() as connection:
        assert connection.execute(select(jobs.c.id).where(jobs.c.losses > 0)).all() == []


@on_postgresql
@pytest.mark.storm  # its parts have contract tests
@pytest.mark.simulator("--latency", "1")
@pytest.mark.settings(grace_s=60)
def test_a_worker_that_is_stopped_while_its_database_is_away_ends_with_its_last_call(arena: Arena) -> None:
    server = server_of(arena)
    start_the_middle_of_a_run(arena, workers=1)
    [worker] = arena.shop.started
    server.kill()
    arena.wait_for(lambda: "ledger.away" in arena.worker_log(), "the outage is seen")
    code, seconds = end(worker)
    assert code == 0
    assert seconds < 1 + 2 + 3, "a call, leaving, and a busy machine"
    assert spooled(arena) > 0

    def restart() -> None:
        server.start()
        arena.worker()

    recover_s = come_back(arena, restart)
    arena.conclude("SIGTERM while PostgreSQL is away, long grace", most_extra_calls=0, recover_s=recover_s)
    with arena.ledger.read() as connection:
        assert connection.execute(select(jobs.c.id).where(jobs.c.losses > 0)).all() == []


@pytest.mark.storm  # its parts have contract tests
@pytest.mark.simulator("--latency", "0.5")
def test_answers_that_the_database_keeps_waiting_are_on_disk_within_seconds(arena: Arena, hang: Hang) -> None:
    """A machine that dies meanwhile has them; and a `kill -9`, here."""
    worker, go_on = hang_in_mid_run(arena, hang)
    paid = int(arena.simulator.stats()["paid"])
    arena.wait_for(lambda: spooled(arena) >= paid - arena.ended(), "all of them are spooled", within_s=10)
    end(worker, signal.SIGKILL)
    go_on()
    arena.worker()
    recover_s = arena.wait_for_progress()
    arena.conclude("kill -9 while the database hangs", most_extra_calls=0, recover_s=recover_s)


@pytest.mark.full
@on_postgresql
@pytest.mark.simulator("--latency", "1")
@pytest.mark.parametrize(
    "other", ["alive all the time", pytest.param("started afterwards", marks=pytest.mark.storm)]
)
def test_a_worker_dies_with_answers_in_its_spool_and_another_records_them(arena: Arena, other: str) -> None:
    server = server_of(arena)
    slots = arena.size(50, 8)
    arena.queue(arena.size(400, 60))
    doomed = arena.worker(concurrency=slots)
    if other == "alive all the time":
        arena.worker(concurrency=slots)
    arena.wait_for(
        lambda: arena.ended() >= slots and all(arena.held_by(w) >= slots // 2 for w in arena.shop.started),
        "the run is in its middle, for each",
    )
    server.kill()
    stay_away(arena, 1.0)
    assert spooled(arena) > 0
    made = calls_made(arena)
    end(doomed, signal.SIGKILL)
    files = 2 if other == "alive all the time" else 1
    spool = arena.folder / ".antrean" / "spool"
    arena.wait_for(lambda: len(list(spool.glob("*.spool"))) == files, "each has answers in its spool")

    def restart() -> None:
        server.start()
        if other == "started afterwards":
            arena.worker(concurrency=slots)

    recover_s = come_back(arena, restart)
    arena.conclude(
        f"killed while the database is away, other {other}", most_extra_calls=0, recover_s=recover_s
    )
    assert "spool.replayed" in arena.worker_log()
    assert calls_made(arena) > made
