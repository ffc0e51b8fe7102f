"""A worker of several endpoints in this process, without Celery: what the relay publishes, its dispatcher receives."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import redis

from schemas.chat import parse_request
from schemas.job import Due
from tests.support.ledger import rows
from worker.attempt.dispatch import Dispatcher, Received
from worker.attempt.execute import Executor
from worker.attempt.report import Report, Verdict
from worker.broker.client import BrokerEpoch
from worker.clock import SystemClock
from worker.ids import new_id
from worker.intake.submit import make_job
from worker.pool import Pool, Surroundings, begin_limiters
from worker.settings import Settings, load_settings
from worker.storage.engine import Ledger
from worker.storage.intake import insert_jobs
from worker.storage.writer import GroupWriter
from worker.upkeep.relay import Relay
from worker.upkeep.spool import SpoolFile


def load_pool(folder: Path, tables: dict[str, dict[str, Any]], **settings: Any) -> Settings:
    """Settings with these tables of endpoints."""
    return load_settings(endpoint_tables=tables, home=folder, _env_file=None, **settings)


class PoolHouse:
    """Works from its beginning to `close`."""

    def __init__(self, ledger: Ledger, broker: redis.Redis, settings: Settings) -> None:
        self.ledger, self.settings = ledger, settings
        clock = SystemClock()
        self.verdicts: Counter[Verdict] = Counter()
        self.writer = GroupWriter(
            ledger,
            worker_id=new_id(),
            endpoint=settings.endpoint,
            clock=clock,
            window_s=0.002,
            find_price=lambda model: self.pool.routes.find_price(model),
        )
        self.pool = Pool(
            Surroundings(
                settings,
                ledger,
                broker,
                self.writer,
                clock,
                "w1",
                "ledger",
                poke_relay=lambda: self.relay.poke(),
            )
        )
        self.slots = self.pool.slots
        self.relay = Relay(
            ledger,
            self._publish,
            BrokerEpoch(broker, settings.endpoint),
            self.pool.gates,
            clock,
            endpoint=settings.endpoint,
            republish_after_s=1e6,
            may_probe=self.pool.may_call_a_job,
            spread=self.pool.spread,
        )
        spool = SpoolFile(settings.spool_folder, "w1")
        executor = Executor(
            routes=self.pool.routes,
            writer=self.writer,
            spool=spool,
            clock=clock,
            is_stopping=lambda: self.slots.is_stopping,
            is_paused=lambda: False,
        )
        self._threads = ThreadPoolExecutor(settings.thread_count)
        self.dispatcher = Dispatcher(
            executor,
            self.slots,
            writer=self.writer,
            spool=spool,
            clock=clock,
            spawn=self._threads.submit,
            ahead_limit=max(1, settings.staged_count // 2),
            on_ahead=lambda ahead: None,
            on_lack=self.pool.poke_limiters,
        )
        self.pool.begin(self.dispatcher)
        self._is_stopping, self._is_leaving = threading.Event(), threading.Event()
        self.writer.start()
        self._beside = begin_limiters(self.pool, self._thread, self._is_leaving)
        # Live slots are counted by the workers' rows, and here is none: the least window is the bound.
        self._thread("relay", lambda: self.relay.run(self._is_stopping, interval_s=0.05))

    def queue(self, count: int, *, model: str, batch: str = "b", is_bulk: bool = True) -> list[str]:
        """So many jobs in one batch."""
        jobs = [
            make_job(
                parse_request(
                    {"model": model, "messages": [{"role": "user", "content": f"{batch} {number}"}]}
                ),
                endpoint=self.settings.endpoint,
                batch_id=batch,
                is_bulk=is_bulk,
            )
            for number in range(count)
        ]
        now_ms = SystemClock().now_ms()
        known = self.ledger.run(lambda c: insert_jobs(c, jobs, now_ms=now_ms))
        self.relay.poke()
        return [one.id for one in known]

    def receive(self, job_id: str, *, model: str | None) -> None:
        """A message of the job, whether it was due or not."""
        self._publish([Due(job_id, 0, True, model)])

    def states(self, batch: str | None = None) -> Counter[str]:
        """The number of jobs in each state."""
        found = rows(self.ledger, "jobs") if batch is None else rows(self.ledger, "jobs", batch_id=batch)
        return Counter(row.state for row in found)

    def close(self) -> None:
        self.dispatcher.stop()
        self._is_stopping.set()
        self.relay.poke()
        self.pool.routes.cut_all_calls()
        assert self.slots.wait_until_idle(lambda: False, timeout_s=20)
        self._is_leaving.set()
        for limiter in self.pool.limiters:
            limiter.poke()
        for thread in self._beside:
            thread.join(10)
        self._threads.shutdown()
        assert self.writer.stop(10)
        for route in self.pool.routes.every:
            route.client.close()

    def _publish(self, due: Sequence[Due]) -> None:
        for job in due:
            self.dispatcher.receive(
                Received(
                    job.id,
                    job.is_bulk,
                    lambda report, id_=job.id: self._finish(id_, report),  # type: ignore[misc]
                    lambda: None,
                    model=job.model,
                )
            )

    def _finish(self, job_id: str, report: Report) -> None:
        self.verdicts[report.verdict] += 1
        if report.verdict is Verdict.GIVEN_BACK and not self.slots.is_stopping:
            self.writer.give_message_back(job_id)

    def _thread(self, name: str, target: Any, *args: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        thread.start()
        self._beside = [*getattr(self, "_beside", []), thread]
        return thread
