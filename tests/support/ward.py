"""A ledger for the doctor to look at: sound, with a job in each state, until somebody lays hands on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Update, update

from schemas.failure import FailureKind
from schemas.job import JobState
from tests.support.ledger import ENDPOINT, a_job, claim, job_row, put, record, rows, setback, success
from worker.broker.client import BrokerEpoch
from worker.operations.doctor import Examination, examine
from worker.settings import Settings
from worker.storage.doctor import Finding
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_jobs
from worker.storage.outcomes import ClaimedJob
from worker.storage.tables import jobs
from worker.storage.workers import register_worker

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WORKER = "w1"
RAW = orjson.dumps(
    {
        "model": "m-2",
        "choices": [{"message": {"content": "Hello"}}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }
)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Ward:
    """A sound ledger with a job in each state, and its settings."""

    ledger: Ledger
    settings: Settings
    ids: dict[str, str]
    claimed: dict[str, ClaimedJob]

    def look(self) -> Examination:
        return examine(self.ledger, self.settings)

    def names(self) -> list[str]:
        return [one.name for one in self.look().findings]

    def finding(self, name: str) -> Finding:
        """The only one there is."""
        [one] = self.look().findings
        assert one.name == name
        return one

    def run(self, *statements: Any) -> None:
        self.ledger.run(lambda connection: [connection.execute(one) for one in statements])

    def set(self, which: str, **values: Any) -> None:
        self.run(self.update(which, **values))

    def update(self, which: str, **values: Any) -> Update:
        return update(jobs).where(jobs.c.id == self.ids[which]).values(**values)

    def row(self, which: str) -> Any:
        return job_row(self.ledger, self.ids[which])

    def everything(self) -> dict[str, Any]:
        tables = ("jobs", "requests", "attempts", "results", "usage", "batches", "workers", "failure_bodies")
        return {table: rows(self.ledger, table) for table in tables}


def admit(ledger: Ledger, worker_id: str, *, at_ms: int | None = None, endpoint: str = ENDPOINT) -> None:
    """A worker that beat then, now unless told."""
    ledger.run(
        lambda connection: register_worker(
            connection,
            worker_id,
            endpoint=endpoint,
            hostname="h",
            pid=1,
            slots=1,
            lease_ms=2000,
            now_ms=now_ms() if at_ms is None else at_ms,
        )
    )


def with_broker(settings: Settings, address: str) -> Settings:
    return Settings(**{**settings.model_dump(), "broker_url": address}, _env_file=None)


def make_ward(ledger: Ledger, settings: Settings, valkey: Any, valkey_path: str) -> Ward:
    """A sound ledger, and a broker that knows it."""
    BrokerEpoch(valkey, ENDPOINT).set()
    at_ms = now_ms()
    names = [state.value for state in JobState] + ["published"]
    ids = dict(
        zip(names, [job.id for job in put(ledger, *[a_job() for _ in names], now_ms=at_ms)], strict=True)
    )
    # A minute from now: the tests are quicker, and ten leases must not run out in a debugger.
    admit(ledger, WORKER, at_ms=at_ms + 60_000)
    claimed = {}
    for name in ("running", "waiting", "succeeded", "failed"):
        claimed[name] = claim(ledger, ids[name], token=f"{WORKER}:{name}", worker=WORKER, now_ms=at_ms)[
            ids[name]
        ]
    record(
        ledger,
        setback(claimed["waiting"], not_before_ms=at_ms + HOUR_MS, ended_at_ms=at_ms),
        success(claimed["succeeded"], ended_at_ms=at_ms, raw=RAW),
        setback(claimed["failed"], kind=FailureKind.REJECTED, ended_at_ms=at_ms, body=b"no"),
    )
    ledger.run(lambda connection: cancel_jobs(connection, [ids["cancelled"]], now_ms=at_ms))
    settings = with_broker(settings, f"redis+socket://{valkey_path}?virtual_host=0")
    ward = Ward(ledger, settings, ids, claimed)
    ward.set("expired", state="expired", ended_at_ms=at_ms)
    ward.set("published", published_at_ms=at_ms)
    return ward
