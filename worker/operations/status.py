"""Where a batch or the whole ledger stands, and why what is open is not being called. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from schemas.job import JobState
from worker.clock import SystemClock
from worker.operations.budgets import describe_budget_wait
from worker.operations.endpoint_choice import drop_served
from worker.operations.gates import EndpointGate, GateWatch, describe_trouble, find_shut
from worker.operations.limits import HeldLimits, fetch_held_limits
from worker.policy.gates import Gate
from worker.reports.waiting import Reason, explain_waiting
from worker.settings import Settings
from worker.storage.batch_status import BatchStatus, fetch_status
from worker.storage.batches import Batch, count_states, fetch_batches
from worker.storage.engine import Ledger, Transaction
from worker.storage.identity import fetch_place
from worker.storage.open_jobs import OpenJobs, fetch_open_jobs
from worker.storage.open_models import count_first_models
from worker.storage.pauses import Pause, fetch_pauses
from worker.storage.reading import Trouble, fetch_trouble
from worker.storage.workers import WorkerFacts, fetch_workers

_LATEST = 10
_MOST_LOOKED_AT = 10_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a batch or a whole ledger stands at one time: what is open, and what could work on it."""

    place: str  # where the ledger is kept
    batches: Sequence[BatchStatus]  # the one that was asked for, or the latest of the ledger
    counts: Mapping[JobState, int]
    open_jobs: OpenJobs
    workers: Sequence[WorkerFacts]
    pauses: Sequence[Pause]
    trouble: Trouble | None  # of the ledger, or of the batch's endpoint
    now_ms: int
    limits: Sequence[HeldLimits] = ()  # of each endpoint of these settings
    gates: Sequence[EndpointGate] = ()  # of the same, where they concern what was asked: no others are known
    endpoint: str = ""
    # Of the jobs of `endpoint`, those whose model no endpoint serves, by model; as far as was looked.
    unserved: Mapping[str, int] = field(default_factory=dict)
    budget_wait: str | None = None  # why the batch that was asked for waits at its budget

    def concerns(self, endpoint: str) -> bool:
        """Whether something open is to be called there."""
        return endpoint in self.open_jobs.queued or any(
            one.endpoint == endpoint for one in self.open_jobs.waits
        )

    @property
    def gate(self) -> Gate | None:
        """The gate that keeps all jobs of `endpoint` waiting, if one does."""
        return find_shut(self.gates)

    @property
    def waits_for(self) -> str | None:
        """What keeps all jobs waiting, in a sentence; None where nothing does."""
        return None if self.trouble is None else describe_trouble(self.trouble, self.gate, now_ms=self.now_ms)

    @property
    def reasons(self) -> list[Reason]:
        """Why open jobs wait, endpoint by endpoint, each reason with its number of jobs."""
        return explain_waiting(
            self.open_jobs,
            workers=self.workers,
            pauses=self.pauses,
            gates={} if self.gate is None else {self.endpoint: self.gate},
            now_ms=self.now_ms,
            unserved={self.endpoint: self.unserved} if self.unserved else {},
            rates={self.endpoint: rates} if (rates := self._describe_rates()) else {},
        )

    def _describe_rates(self) -> str:
        are_several = len(self.limits) > 1
        return ", ".join(
            one + (f" at {held.endpoint.name}" if are_several else "")
            for held in self.limits
            for one in held.described_rates
        )


def fetch_snapshot(ledger: Ledger, settings: Settings, batch: Batch | None) -> Snapshot:
    """How the batch stands, or without one the whole ledger with its latest ten batches, the newest first.

    A broker that does not answer costs seconds, and counts as one without a shut gate. Raises DatabaseAway.
    """
    with ledger.read() as connection:
        now_ms = SystemClock().now_ms()
        chosen = fetch_batches(connection, limit=_LATEST) if batch is None else [batch]
        batches = [fetch_status(connection, one) for one in chosen]
        found = Snapshot(
            place=fetch_place(connection),
            batches=batches,
            counts=count_states(connection) if batch is None else batches[0].counts,
            open_jobs=fetch_open_jobs(connection, batch),
            workers=fetch_workers(connection),
            pauses=fetch_pauses(connection),
            trouble=fetch_trouble(connection, None if batch is None else batch.endpoint),
            now_ms=now_ms,
            endpoint=settings.endpoint,
            unserved=_find_unserved(connection, settings, batch),
            limits=[fetch_held_limits(connection, one) for one in settings.endpoints],
        )
    # A broker that does not answer takes seconds to say so: no transaction waits for it.
    if batch is None or found.concerns(settings.endpoint):
        found = replace(found, gates=GateWatch(settings).fetch_each())
    if batch is not None:
        wait = describe_budget_wait(ledger, settings, batches[0].budget)
        found = replace(found, budget_wait=wait)
    return found


def _find_unserved(connection: Transaction, settings: Settings, batch: Batch | None) -> Mapping[str, int]:
    if not settings.endpoint_tables:
        return {}
    batch_id = None if batch is None else batch.id
    models = count_first_models(connection, settings.endpoint, at_most=_MOST_LOOKED_AT, batch_id=batch_id)
    return drop_served(models, settings.endpoint_tables)
