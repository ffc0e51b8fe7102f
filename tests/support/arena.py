"""An arena to break things in: a broker, a database and an endpoint of its own, workers, and what it all came to.

Every scenario of `tests/faults` ends in `conclude`, which waits until the jobs have ended, looks at the invariants and
gives the row of figures that `scripts/test --storm` prints.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Select, func, select

from schemas.chat import parse_request
from schemas.failure import FailureKind
from tests.support.audit import assert_sound, states
from tests.support.processes import Process, Shop, SimulatorProcess, end, wait_until
from tests.support.servers import PostgresProcess, ValkeyProcess
from worker.clock import SystemClock
from worker.intake.submit import make_job, submit_many
from worker.settings import Settings, load_settings
from worker.storage.engine import Ledger, open_ledger
from worker.storage.migrating import migrate
from worker.storage.tables import attempts, jobs, usage, workers

LEASE_S = 2.0
MODEL = "DeepSeek-V3.1"


@dataclass(frozen=True, slots=True)
class Figures:
    """What a fault came to. `lost` jobs did not end, or ended without cause; `recover_s` None: nothing to wait for."""

    fault: str
    database: str
    jobs: int
    ended: int
    lost: int
    duplicates: int
    extra_calls: int
    recover_s: float | None


@dataclass
class Arena:
    """One scenario's world."""

    folder: Path
    database: str  # sqlite, postgresql
    is_full: bool  # --storm: hundreds of jobs; otherwise the short form
    simulator: SimulatorProcess
    valkey: ValkeyProcess
    postgres: PostgresProcess | None
    shop: Shop
    settings: Settings
    ledger: Ledger
    report: Callable[[Figures], None]
    queued: int = 0
    held_at_kills: Counter[str] = field(
        default_factory=Counter
    )  # by job: how often it was in the hands of a victim

    def size(self, full: int, short: int) -> int:
        """How many: `full` with --storm."""
        return full if self.is_full else short

    def queue(self, count: int, *, batch: str = "batch_x", is_bulk: bool = True) -> None:
        """Writes `count` more jobs down."""
        first = self.queued
        self.queued += count
        submit_many(
            self.ledger,
            (
                make_job(
                    parse_request({"model": MODEL, "messages": [{"role": "user", "content": f"Tell {i}."}]}),
                    endpoint=self.settings.endpoint,
                    batch_id=batch,
                    position=i + 1,
                    is_bulk=is_bulk,
                )
                for i in range(first, first + count)
            ),
            clock=SystemClock(),
        )

    def worker(self, *, python_path: Path | None = None, **settings: object) -> Process:
        """A worker process that is ready, with a log of its own (`worker_log`)."""
        log = f"worker{len(self.shop.started)}.log"
        return self.shop.worker(log=log, python_path=python_path, **settings)

    def begin_worker(self, **settings: object) -> Process:
        """A worker process that is only just starting."""
        return self.shop.begin_worker(log=f"worker{len(self.shop.started)}.log", **settings)

    def worker_log(self) -> str:
        """What all workers have said."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("worker*.log")))

    def states(self) -> dict[str, int]:
        return dict(states(self.ledger))

    def count(self, *wanted: str) -> int:
        """Jobs in one of these states."""
        found = states(self.ledger)
        return sum(found[state] for state in wanted)

    def ended(self) -> int:
        return self.count("succeeded", "failed", "cancelled", "expired")

    def in_flight(self) -> int:
        """Calls in flight, as the endpoint sees them."""
        return int(self.simulator.stats()["in_flight"])

    def calls_of(self, job_id: str) -> int:
        """Calls for this job that the endpoint has received."""
        return int(self.simulator.calls().get(job_id, {"received": 0})["received"])

    def extra_calls(self) -> int:
        """Calls that the endpoint has received beyond one a job."""
        return sum(call["received"] - 1 for call in self.simulator.calls().values())

    def last_published_ms(self) -> int | None:
        """When the latest of the jobs that are in the broker, and not claimed, was handed to it."""
        with self.ledger.read() as connection:
            return connection.execute(select(func.max(jobs.c.published_at_ms))).scalar_one()

    def wait_for(self, is_so: Callable[[], Any], what: str, *, within_s: float = 30.0) -> float:
        """Seconds until it was so."""
        began_s = time.monotonic()
        wait_until(is_so, within_s=within_s, what=what)
        return time.monotonic() - began_s

    def wait_for_progress(self, *, within_s: float = 30.0) -> float:
        """Seconds until one more job has ended than now."""
        before = self.ended()
        return self.wait_for(lambda: self.ended() > before, "work goes on", within_s=within_s)

    def wait_for_every_worker(self, *, within_s: float = 20.0) -> None:
        """Waits until each worker that lives has claimed anew: more than what lay in its hand, which takes a second."""
        wanted = {worker.pid for worker in self.shop.started if worker.poll() is None}
        since_ms = time.time_ns() // 1_000_000 + 1000
        query = (
            select(workers.c.pid)
            .distinct()
            .select_from(jobs.join(workers, workers.c.id == jobs.c.worker_id))
            .where(jobs.c.claimed_at_ms >= since_ms)
        )

        def have_all_claimed() -> bool:
            if self.queued - self.ended() < self.size(100, 20):  # less than all of them can have in hand
                self.queue(self.size(200, 40))
            with self.ledger.read() as connection:
                return wanted <= set(connection.execute(query).scalars())

        self.wait_for(have_all_claimed, "every worker claims again", within_s=within_s)

    def ids_held_by(self, worker: Process) -> list[str]:
        """Jobs that the ledger shows in the hands of this process: calls in flight, or about to be."""
        with self.ledger.read() as connection:
            return list(
                connection.execute(
                    select(jobs.c.id)
                    .select_from(jobs.join(workers, workers.c.id == jobs.c.worker_id))
                    .where(jobs.c.state == "running", workers.c.pid == worker.pid)
                ).scalars()
            )

    def held_by(self, worker: Process) -> int:
        """How many jobs the ledger shows in the hands of this process."""
        return len(self.ids_held_by(worker))

    def beats_of(self, worker: Process) -> int:
        """The sequence number of this process's lease."""
        with self.ledger.read() as connection:
            return connection.execute(
                select(workers.c.sequence).where(workers.c.pid == worker.pid)
            ).scalar_one()

    def is_stopped(self, worker: Process) -> bool:
        """Whether SIGSTOP has reached it."""
        return bool(psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)

    def kill(self, worker: Process) -> int:
        """kill -9; how many calls it had in flight. It stands still while they are counted."""
        worker.send_signal(signal.SIGSTOP)
        wait_until(lambda: self.is_stopped(worker), within_s=5, what="it stands still")
        in_flight = self.ids_held_by(worker)
        self.held_at_kills.update(in_flight)
        end(worker, signal.SIGKILL)
        return len(in_flight)

    def conclude(
        self,
        fault: str,
        *,
        most_extra_calls: int,
        recover_s: float | None = None,
        within_s: float = 120.0,
        failures: int = 0,
        may_be_unused: int = 0,
        is_paid_kept: bool = True,
    ) -> Figures:
        """Waits until all jobs have ended, and holds the ledger and the endpoint's counts against the invariants.

        `failures` jobs end otherwise than succeeded, and no more. `may_be_unused` answers may have come second.
        `is_paid_kept` False: workers died with answers on their way to them. Where `kill` was used, a job may be called
        again as often as it was in a victim's hands.
        """
        late: AssertionError | None = None
        try:
            self.wait_for(lambda: self.ended() == self.queued, "all jobs end", within_s=within_s)
        except AssertionError as exc:
            late = exc  # its row of figures is what one wants to see
        found, ended = self.states(), self.ended()
        calls = self.simulator.calls()
        with self.ledger.read() as connection:
            twice = connection.execute(
                select(attempts.c.job_id)
                .where(attempts.c.outcome == "succeeded")
                .group_by(attempts.c.job_id)
                .having(func.count() > 1)
            ).all()
            unused = connection.execute(
                select(func.count()).where(attempts.c.outcome == "unused")
            ).scalar_one()
        figures = Figures(
            fault=fault,
            database=self.database,
            jobs=self.queued,
            ended=ended,
            lost=max(0, self.queued - ended) + max(0, ended - found.get("succeeded", 0) - failures),
            duplicates=len(twice) + max(0, sum(found.values()) - self.queued),
            extra_calls=sum(call["received"] for call in calls.values()) - len(calls),
            recover_s=recover_s,
        )
        self.report(figures)
        if late is not None:
            raise late
        assert figures.lost == 0, (found, self.worker_log()[-3000:])
        assert figures.duplicates == 0
        assert unused <= may_be_unused, f"{unused} answers came second"
        assert_sound(self.ledger)
        assert figures.extra_calls <= most_extra_calls, f"{figures.extra_calls} calls were made again"
        if self.held_at_kills:
            again = Counter({job: call["received"] - 1 for job, call in calls.items()})
            assert not again - self.held_at_kills, "a job was called again that no victim had in hand"
        self.wait_for(lambda: not list(self.folder.rglob("*.spool")), "no answer is left in a spool")
        assert not list(self.folder.rglob("rejected.jsonl"))
        if is_paid_kept:
            # The last job may have ended by one worker's answer while another's call for it was under way.
            try:
                self.wait_for(lambda: not self.paid_and_not_kept(), "the ledger keeps each paid answer")
            except AssertionError:
                assert self.paid_and_not_kept() == {}, "paid for, kept, and timed out, of each such job"
        return figures

    def paid_and_not_kept(self) -> dict[str, tuple[int, int, int]]:
        """Of each job whose counts disagree: answers paid for, kept by the ledger, and calls that had timed out.

        Nobody hears the answer to a call that has timed out, whether or not the endpoint brings it to its end.
        """

        def by_job(query: Select[tuple[str, int]]) -> Counter[str]:
            with self.ledger.read() as connection:
                return Counter(dict(connection.execute(query).all()))

        kept = by_job(select(usage.c.job_id, func.count()).group_by(usage.c.job_id))
        late = by_job(
            select(attempts.c.job_id, func.count())
            .where(attempts.c.outcome == FailureKind.TIMEOUT)
            .group_by(attempts.c.job_id)
        )
        paid = Counter({job_id: call["paid"] for job_id, call in self.simulator.calls().items()})
        return {
            job_id: (paid[job_id], kept[job_id], late[job_id])
            for job_id in {*paid, *kept}
            if not kept[job_id] <= paid[job_id] <= kept[job_id] + late[job_id]
        }


def make_arena(
    folder: Path,
    database: str,
    simulator: SimulatorProcess,
    *,
    is_full: bool,
    report: Callable[[Figures], None],
    **settings: object,
) -> Arena:
    """An arena whose workers have a lease of 2 s. Close it with `close_arena`."""
    postgres = PostgresProcess(folder) if database == "postgresql" else None
    valkey = ValkeyProcess(folder)
    address = f"sqlite:///{folder}/ledger.db" if postgres is None else postgres.make_database()
    given: dict[str, object] = {
        "home": folder / ".antrean",
        "base_url": simulator.url,
        "api_key": "k",
        "broker_url": valkey.url,
        "database_url": address,
        "lease_s": LEASE_S,
        "sqlite_synchronous": "normal",
        **settings,
    }
    shop = Shop(folder, given)
    loaded = load_settings(**given, _env_file=None)
    ledger = open_ledger(loaded)
    migrate(ledger)
    return Arena(folder, database, is_full, simulator, valkey, postgres, shop, loaded, ledger, report)


def close_arena(arena: Arena) -> None:
    for process in arena.shop.started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
    arena.shop.close()
    arena.ledger.dispose()
    arena.valkey.stop()
    if arena.postgres is not None:
        arena.postgres.close()
