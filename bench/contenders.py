"""The contenders: each is given the same requests, and tells when each job began and ended, and what it cost."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import func, select

from bench.measure import Sample, Span, cpu_at, cpu_per_job_ms, find_steady, percentiles_beyond, ramp_up_s
from bench.processes import (
    BenchError,
    Cost,
    Watch,
    begin,
    busy_s,
    end,
    environment,
    run_to_end,
    tail,
    tree_usage,
    wait_until,
)
from bench.requests_file import write_requests
from bench.servers import Broker, Postgres, Simulator
from worker.settings import load_settings
from worker.storage.engine import Ledger, open_ledger
from worker.storage.tables import attempts
from worker.storage.tables import jobs as job_rows

_PATIENCE_FACTOR = 6  # times the ceiling's duration until a contender is given up
_STALL_S = 30.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Where contenders run: the servers, and a folder for the files of each."""

    folder: Path
    simulator: Simulator
    broker: Broker
    postgres: Postgres | None
    latency_s: float

    @contextmanager
    def counted_apart(self) -> Iterator[dict[str, float]]:
        """CPU seconds of each server meanwhile, by its name."""
        servers = [server for server in (self.simulator, self.broker, self.postgres) if server is not None]
        used = {server.name: -server.cpu_s() for server in servers}
        yield used
        for server in servers:
            used[server.name] += server.cpu_s()

    def subfolder(self, name: str) -> Path:
        path = self.folder / f"{name}-{time.monotonic_ns() % 10**9:x}"
        path.mkdir()
        return path


@dataclass(frozen=True, slots=True)
class Run:
    """What was seen of one contender."""

    spans: list[Span]
    samples: list[Sample]
    peak_bytes: int
    publish_cpu_s: float  # of whoever queued the jobs, in a process of its own
    failed: int = 0


@contextmanager
def strangers(stage: Stage) -> Iterator[dict[str, float]]:
    """How many cores were busy meanwhile with what is none of ours: the noise of the figures."""

    def others_s() -> float:
        ours_s, _ = tree_usage(os.getpid())
        return busy_s() - ours_s - (stage.postgres.cpu_s() if stage.postgres else 0.0)

    found = {"cores": 0.0}
    before_s, begun_s = others_s(), time.monotonic()
    yield found
    found["cores"] = (others_s() - before_s) / (time.monotonic() - begun_s)


class Contender(Protocol):
    def __call__(self, stage: Stage, slots: int, jobs: int) -> Run:
        """Does so many jobs in so many slots."""


def measure(contender: Contender, stage: Stage, slots: int, jobs: int) -> dict[str, Any]:
    """The figures of one contender, ready for JSON. Times in the unit of their name."""
    stage.simulator.reset()
    stage.broker.reset()
    with stage.counted_apart() as servers, strangers(stage) as foreign:
        run = contender(stage, slots, jobs)
    steady = find_steady(run.spans, slots)
    publish_ms = run.publish_cpu_s * 1000 / jobs
    ceiling = slots / stage.latency_s
    return {
        "slots": slots,
        "jobs": jobs,
        "failed": run.failed,
        "jobs_per_s": steady.jobs_per_s,
        "share_of_ceiling": steady.jobs_per_s / ceiling,
        "cpu_ms": cpu_per_job_ms(run.samples, steady) + publish_ms,
        "whole_cpu_ms": _whole_cpu_ms(run, jobs) + publish_ms,
        "publish_cpu_ms": publish_ms,
        "peak_mb": run.peak_bytes / 1e6,
        **{f"beyond_{k}_ms": v for k, v in percentiles_beyond(run.spans, steady, stage.latency_s).items()},
        "turnover_ms": (slots / steady.jobs_per_s - stage.latency_s) * 1000,
        "ramp_up_s": ramp_up_s(run.spans, slots),
        "calls": stage.simulator.stats()["calls"],
        "foreign_cores": foreign["cores"],
        "servers_cpu_ms": {name: used * 1000 / jobs for name, used in servers.items()},
        "steady": asdict(steady),
    }


def _whole_cpu_ms(run: Run, jobs: int) -> float:
    """Milliseconds a job from the first job's start to the end of the run: ramp-up and drain are in it."""
    begun_s = min(span.started_s for span in run.spans)
    return (run.samples[-1].cpu_s - cpu_at(run.samples, begun_s)) * 1000 / jobs


# antrean ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shop:
    """A home with a ledger that is ready, its settings, and the commands that run under them."""

    folder: Path
    settings: dict[str, object]

    def command(self, *args: str) -> Cost:
        return run_to_end("worker.cli", *args, folder=self.folder, env=environment(self.settings))

    def submit(self, file: Path, *options: str) -> Cost:
        """What the real command used for a file."""
        return self.command("submit", str(file), "--no-check", "--json", *options)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        ledger = open_ledger(load_settings(**self.settings, _env_file=None))
        yield ledger
        ledger.dispose()

    @contextmanager
    def worker(self, concurrency: int | str, name: str = "bench") -> Iterator[Watch]:
        """A worker that takes jobs, watched."""
        log = f"{name}.log"
        process = begin(
            *("celery", "-A", "worker", "worker", "-n", f"{name}@%h"),
            folder=self.folder,
            env=environment({**self.settings, "concurrency": concurrency}),
            log=log,
        )
        watch = Watch(process.pid)
        try:
            yield watch
            if process.poll() is not None:
                raise BenchError(f"the worker ended: {tail(self.folder / log)}")
        finally:
            watch.close()
            end(process)


def open_shop(stage: Stage, database: str, **settings: object) -> Shop:
    """A new home on `database` ("sqlite" or "postgresql"), migrated."""
    folder = stage.subfolder(f"antrean-{database}")
    given: dict[str, object] = {
        "home": folder / "home",
        "base_url": stage.simulator.url,
        "api_key": "k",
        "broker_url": stage.broker.url,
        "endpoint_name": folder.name,
        **settings,
    }
    if database == "postgresql":
        if stage.postgres is None:
            raise BenchError("there is no PostgreSQL")
        given["database_url"] = stage.postgres.make_database()
    shop = Shop(folder, given)
    shop.command("migrate")
    return shop


def _antrean(database: str) -> Contender:
    def run(stage: Stage, slots: int, jobs: int) -> Run:
        shop = open_shop(stage, database)
        one = cost_of_one_line(stage, database)
        submitted = shop.submit(write_requests(shop.folder / "requests.jsonl", jobs))
        with shop.ledger() as ledger, shop.worker(slots) as watch:
            _wait_for(lambda: count_ended(ledger), jobs, slots, stage.latency_s)
            spans, failed = fetch_spans(ledger)
            time.sleep(0.3)  # one more sample
        return Run(
            spans=spans,
            samples=watch.samples,
            peak_bytes=max(watch.peak_bytes, submitted.peak_bytes),
            # The start of a command is not a cost of each job.
            publish_cpu_s=max(0.0, submitted.cpu_s - one),
            failed=failed,
        )

    return run


@cache
def cost_of_one_line(stage: Stage, database: str) -> float:
    """CPU seconds of `antrean submit` with a single line: what its start costs."""
    shop = open_shop(stage, database)
    return shop.submit(write_requests(shop.folder / "one.jsonl", 1)).cpu_s


def count_ended(ledger: Ledger) -> int:
    """Jobs of the ledger that have ended."""
    with ledger.read() as connection:
        return int(
            connection.execute(select(func.count()).where(job_rows.c.ended_at_ms.is_not(None))).scalar_one()
        )


def fetch_spans(ledger: Ledger) -> tuple[list[Span], int]:
    """When the call of each job that succeeded began and was answered; and how many jobs failed."""
    calls = select(attempts.c.started_at_ms, attempts.c.ended_at_ms).where(attempts.c.outcome == "succeeded")
    with ledger.read() as connection:
        rows = connection.execute(calls).all()
    spans = [Span(started / 1000, ended / 1000) for started, ended in rows]
    return spans, count_ended(ledger) - len(spans)


# The others -------------------------------------------------------------------------------------------------------


def _official(transport: str) -> Contender:
    def run(stage: Stage, slots: int, jobs: int) -> Run:
        folder = stage.subfolder(f"openai-{transport}")
        out = folder / "times"
        process = begin(
            *("bench.official_client", stage.simulator.url, str(slots), str(jobs), transport, str(out)),
            folder=folder,
        )
        watch = Watch(process.pid)
        try:
            process.wait(_patience_s(jobs, slots, stage.latency_s))
        finally:
            watch.close()
            end(process)
        if process.returncode or not out.exists():
            raise BenchError(f"the official client ended: {tail(folder / 'process.log')}")
        lines = [line.split() for line in out.read_text().splitlines()]
        spans = [Span(float(started), float(ended)) for started, ended in lines]
        return Run(spans, watch.samples, watch.peak_bytes, 0.0, failed=jobs - len(spans))

    return run


def _plain_celery(stage: Stage, slots: int, jobs: int) -> Run:
    folder = stage.subfolder("plain")
    database = folder / "plain.db"
    env = {
        **environment(),
        "BENCH_BROKER": stage.broker.url,
        "BENCH_ENDPOINT": stage.simulator.url,
        "BENCH_DATABASE": f"sqlite:///{database}",
    }
    published = run_to_end("bench.plain_publish", str(jobs), folder=folder, env=env)
    options = ("-P", "threads", "-c", str(slots), "-E", "-n", "plain@%h")
    process = begin("celery", "-A", "bench.plain_celery", "worker", *options, folder=folder, env=env)
    watch = Watch(process.pid)
    connection = sqlite3.connect(database, timeout=60)
    try:
        _wait_for(
            lambda: connection.execute("SELECT count(*) FROM plainresult").fetchone()[0],
            *(jobs, slots, stage.latency_s),
            is_partial_fine=True,
        )
        rows = connection.execute("SELECT started_s, ended_s FROM plainresult").fetchall()
        time.sleep(0.3)  # one more sample
    finally:
        connection.close()
        watch.close()
        end(process, within_s=10)
    return Run(
        spans=[Span(*row) for row in rows],
        samples=watch.samples,
        peak_bytes=max(watch.peak_bytes, published.peak_bytes),
        publish_cpu_s=float(published.out.split()[-1]),
        failed=jobs - len(rows),
    )


def _patience_s(jobs: int, slots: int, latency_s: float) -> float:
    return 30.0 + _PATIENCE_FACTOR * jobs * latency_s / slots


def _wait_for(
    count: Callable[[], int], jobs: int, slots: int, latency_s: float, *, is_partial_fine: bool = False
) -> None:
    """Returns when so many have ended. Raises BenchError when that takes far too long.

    With `is_partial_fine` also when nothing has ended for a while: jobs that a contender loses are told as
    failed.
    """
    seen, seen_at_s = 0, time.monotonic()

    def is_done() -> bool:
        nonlocal seen, seen_at_s
        now = count()
        if now != seen:
            seen, seen_at_s = now, time.monotonic()
        is_stalled = is_partial_fine and seen > 0 and time.monotonic() - seen_at_s > _STALL_S
        return now >= jobs or is_stalled

    within_s = _patience_s(jobs, slots, latency_s)
    wait_until(is_done, within_s=within_s, what=f"{jobs} jobs end", every_s=0.4)


RUNNERS: dict[str, Contender] = {
    "antrean-sqlite": _antrean("sqlite"),
    "antrean-postgresql": _antrean("postgresql"),
    "openai": _official("default"),
    "openai-aiohttp": _official("aiohttp"),
    "celery-requests": _plain_celery,
}
