"""A storm of random faults from a seed, against jobs that are submitted meanwhile. All invariants at once.

ANTREAN_STORM_SEED replays one; the seed and the plan are printed.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TypeVar

import psycopg
import pytest
import redis
from sqlalchemy import func, select

from schemas.chat import parse_request
from tests.support.arena import MODEL, Arena
from tests.support.processes import Process, end
from tests.support.storm import ENDPOINT_FAULTS, Fault, Kind, plan_storm
from worker.clock import SystemClock
from worker.intake.submit import make_job, submit_many
from worker.storage.errors import DatabaseAway
from worker.storage.intake import NewJob
from worker.storage.moves import cancel_jobs, retry_jobs
from worker.storage.tables import jobs

T = TypeVar("T")
_WORKERS = 3
_GRACE_S = 1.0


class Storm:
    """Who is hit, who submits, and how many calls each fault may cost."""

    def __init__(self, arena: Arena, *, slots: int) -> None:
        self.arena = arena
        self.allowed = 0  # calls that may be made again because of faults other than the endpoint's
        self.acknowledged = 0
        self._slots = slots
        self._lock = threading.Lock()
        self._workers: list[Process] = []
        self._broker = threading.Lock()
        self._database = threading.Lock()  # a restart may last until the next one is due
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._packets = 0

    def run(self, faults: list[Fault]) -> None:
        """All of the storm; returns when each fault has ended and nobody submits any more."""
        for task in (self._supervise, self._submit):
            self._start(task)
        began_s = time.monotonic()
        for fault in faults:
            self._is_over.wait(max(0.0, began_s + fault.at_s - time.monotonic()))
            self._start(lambda fault=fault: self._meet(fault))
        for thread in self._threads[2:]:
            thread.join(60)
            assert not thread.is_alive(), "a fault does not end"
        self._is_over.set()
        for thread in self._threads[:2]:
            thread.join(60)
            assert not thread.is_alive()
        if self._errors:
            raise self._errors[0]

    def _start(self, task: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                task()
            except BaseException as exc:
                self._errors.append(exc)

        thread = threading.Thread(target=guarded, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _supervise(self) -> None:
        """As a supervisor does: whoever ended is replaced at once."""
        while not self._is_over.wait(0.2):
            with self._lock:
                self._workers = [one for one in self._workers if one.poll() is None]
                missing = _WORKERS - len(self._workers)
                self._workers += [
                    self.arena.begin_worker(concurrency=self._slots, grace_s=_GRACE_S) for _ in range(missing)
                ]

    def _submit(self) -> None:
        """Some bulk and a lone job four times a second; the same again where the answer was lost."""
        while not self._is_over.wait(0.25):
            self._packets += 1
            bulk = [self._job(f"bulk {self._packets} {i}", is_bulk=True) for i in range(self._slots // 2)]
            packet = [*bulk, self._job(f"lone {self._packets}", is_bulk=False)]
            self._until_it_is_back(
                lambda packet=packet: submit_many(self.arena.ledger, packet, clock=SystemClock())
            )
            self.acknowledged += len(packet)

    def _job(self, text: str, *, is_bulk: bool) -> NewJob:
        request = parse_request({"model": MODEL, "messages": [{"role": "user", "content": text}]})
        return make_job(
            request,
            endpoint=self.arena.settings.endpoint,
            idempotency_key=text,
            batch_id=f"batch_{self._packets % 4}" if is_bulk else "",
            position=self._packets,
            is_bulk=is_bulk,
        )

    def _until_it_is_back(self, work: Callable[[], T]) -> T:
        end_s = time.monotonic() + 60
        while True:
            try:
                return work()
            except DatabaseAway:
                assert time.monotonic() < end_s, "the database does not come back"
                threading.Event().wait(0.2)

    def _meet(self, fault: Fault) -> None:
        met = {
            Kind.KILL_WORKER: self._kill_worker,
            Kind.STOP_WORKER: self._stop_worker,
            Kind.SUSPEND_WORKER: self._suspend_worker,
            Kind.FLUSH_BROKER: self._flush_broker,
            Kind.KILL_BROKER: self._kill_broker,
            Kind.CUT_BROKER: self._cut_broker,
            Kind.PAUSE_BROKER: self._pause_broker,
            Kind.RESTART_DATABASE: self._restart_database,
            Kind.CUT_DATABASE: self._cut_database,
            Kind.BUSY_DATABASE: self._busy_database,
            Kind.BREAK_ENDPOINT: self._break_endpoint,
            Kind.CANCEL_JOBS: self._cancel_jobs,
            Kind.RETRY_JOBS: self._retry_jobs,
        }
        met[fault.kind](fault)

    def _pick(self, fault: Fault) -> Process | None:
        """A worker that nobody else hits; it is no longer the supervisor's, who starts another."""
        with self._lock:
            if not self._workers:
                return None
            return self._workers.pop(int(fault.draw * len(self._workers)))

    def _hold_still(self, worker: Process) -> bool:
        """Suspends it and counts what it has in hand as calls that may be made again."""
        worker.send_signal(signal.SIGSTOP)
        self.arena.wait_for(
            lambda: worker.poll() is not None or self.arena.is_stopped(worker), "it stands still"
        )
        if worker.poll() is not None:
            return False
        held = self._until_it_is_back(lambda: self.arena.held_by(worker))
        with self._lock:
            self.allowed += held
        return True

    def _kill_worker(self, fault: Fault) -> None:
        worker = self._pick(fault)
        if worker is not None and self._hold_still(worker):
            end(worker, signal.SIGKILL)

    def _stop_worker(self, fault: Fault) -> None:
        worker = self._pick(fault)
        if worker is not None and self._hold_still(worker):
            worker.send_signal(signal.SIGCONT)
            code, _ = end(worker)
            assert code in (0, -signal.SIGTERM), code  # the latter: it was not up yet

    def _suspend_worker(self, fault: Fault) -> None:
        worker = self._pick(fault)
        if worker is not None and self._hold_still(worker):
            self._is_over.wait(fault.lasts_s)
            worker.send_signal(signal.SIGCONT)
            with self._lock:
                self._workers.append(worker)

    def _flush_broker(self, _: Fault) -> None:
        with self._broker, suppress(redis.RedisError), self.arena.valkey.client() as client:
            client.flushall()

    def _kill_broker(self, fault: Fault) -> None:
        with self._broker:
            self.arena.valkey.kill()
            self._is_over.wait(fault.lasts_s)
            self.arena.valkey.start()

    def _cut_broker(self, _: Fault) -> None:
        with self._broker, suppress(redis.RedisError), self.arena.valkey.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def _pause_broker(self, fault: Fault) -> None:
        with self._broker, suppress(redis.RedisError), self.arena.valkey.client() as client:
            client.execute_command("CLIENT", "PAUSE", round(fault.lasts_s * 1000), "ALL")

    def _restart_database(self, fault: Fault) -> None:
        assert self.arena.postgres is not None
        with self._database:
            self.arena.postgres.kill()
            self._is_over.wait(fault.lasts_s)
            self.arena.postgres.start()

    def _cut_database(self, _: Fault) -> None:
        assert self.arena.postgres is not None
        with suppress(psycopg.OperationalError), self.arena.postgres.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

    def _busy_database(self, fault: Fault) -> None:
        with closing(sqlite3.connect(self.arena.folder / "ledger.db", isolation_level=None)) as other:
            other.execute("PRAGMA busy_timeout = 30000")
            other.execute("BEGIN IMMEDIATE")
            self._is_over.wait(fault.lasts_s)
            other.execute("ROLLBACK")

    def _break_endpoint(self, fault: Fault) -> None:
        name = ENDPOINT_FAULTS[int(fault.draw * len(ENDPOINT_FAULTS))]
        self.arena.simulator.set_faults(**{name: 0.4})
        self._is_over.wait(fault.lasts_s)
        self.arena.simulator.set_faults(**{name: 0.0})

    def _cancel_jobs(self, fault: Fault) -> None:
        ids = self._ids("queued", "running", at_most=1 + int(fault.draw * 10))
        now_ms = SystemClock().now_ms()
        self._until_it_is_back(lambda: self.arena.ledger.run(lambda c: cancel_jobs(c, ids, now_ms=now_ms)))

    def _retry_jobs(self, _: Fault) -> None:
        """One that was called before is called once more; one more than that is nobody's right."""
        ids = self._ids("cancelled", at_most=20)
        with self._lock:
            self.allowed += len(ids)
        now_ms = SystemClock().now_ms()
        self._until_it_is_back(lambda: self.arena.ledger.run(lambda c: retry_jobs(c, ids, now_ms=now_ms)))

    def count(self) -> int:
        """All jobs of the ledger; our own connections may be among those that were cut."""
        query = select(func.count()).select_from(jobs)
        return self._until_it_is_back(
            lambda: self.arena.ledger.run(lambda c: int(c.execute(query).scalar_one()))
        )

    def _ids(self, *wanted: str, at_most: int) -> list[str]:
        def read() -> list[str]:
            query = select(jobs.c.id).where(jobs.c.state.in_(wanted)).order_by(jobs.c.id).limit(at_most)
            return self.arena.ledger.run(lambda c: list(c.execute(query).scalars()))

        return self._until_it_is_back(read)


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.3", "--latency-jitter", "0.5")
@pytest.mark.settings(
    max_attempts=1000, backoff_base_s=0.2, backoff_cap_s=1, read_timeout_s=8, total_timeout_s=10
)
@pytest.mark.timeout(420)
def test_a_storm_of_random_faults(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    if not arena.is_full and arena.database != "sqlite":
        pytest.skip("runs with --storm")
    given = os.environ.get("ANTREAN_STORM_SEED")
    seed = random.SystemRandom().randrange(1_000_000) if given is None and arena.is_full else int(given or 1)
    faults = plan_storm(seed, duration_s=arena.size(120, 12), database=arena.database)
    print(f"ANTREAN_STORM_SEED={seed}, {arena.database}:")
    for fault in faults:
        print(f"  {fault.at_s:7.3f} s  {fault.kind} ({fault.lasts_s:g} s, {fault.draw:.3f})")
    with capsys.disabled():
        print(f" [ANTREAN_STORM_SEED={seed}] ", end="")
    storm = Storm(arena, slots=arena.size(16, 6))
    storm.run(faults)

    arena.queued = storm.count()
    assert arena.queued == storm.acknowledged, "what was submitted is there, and once"
    before = arena.ended()
    recover_s = arena.wait_for(lambda: arena.ended() > min(before, arena.queued - 1), "work goes on")
    arena.wait_for(lambda: arena.ended() == arena.queued, "all jobs end", within_s=120)
    assert arena.count("failed", "expired") == 0, arena.states()
    stats = arena.simulator.stats()
    refused = sum(stats["faults"].values()) + sum(stats["refused"].values())
    arena.conclude(
        f"random, {len(faults)} faults",
        most_extra_calls=storm.allowed + refused,
        recover_s=recover_s,
        may_be_unused=storm.allowed,
        is_paid_kept=False,
        failures=arena.count("cancelled"),
    )
