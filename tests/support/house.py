"""A worker's parts around one simulated endpoint, and a ledger that is away when it is told to be."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from api_client.client import EndpointClient
from api_client.config import EndpointConfig
from api_client.simulator.thread import SimulatorThread
from schemas.chat import parse_request
from tests.support.clock import FakeClock
from tests.support.ledger import put, state
from worker.attempt.credentials import Credentials
from worker.attempt.dispatch import Dispatcher, Received
from worker.attempt.execute import Executor
from worker.attempt.report import Report, Verdict
from worker.attempt.route import Route
from worker.attempt.routes import Routes
from worker.attempt.slots import Slots
from worker.consume.delivery import write_down
from worker.intake.submit import make_job
from worker.policy.gates import Gate
from worker.policy.retry import RetryRules
from worker.prices.book import open_price_book
from worker.settings import load_settings
from worker.storage.due import take_due
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway
from worker.storage.intake import NewJob
from worker.storage.writer import GroupWriter
from worker.throttle.key_gates import KeyGates
from worker.throttle.store import MemoryGateStore
from worker.throttle.told import ToldLimits
from worker.upkeep.batch_facts import BatchFacts
from worker.upkeep.spool import SpoolFile

KEY = "sk-the-right-key"
MODEL = "DeepSeek-V3.1"


class AwayWhenTold(Ledger):
    """The real ledger, away while `is_away()`."""

    is_away: Callable[[], bool] = staticmethod(lambda: False)

    def run(self, work: Callable[[Connection], Any]) -> Any:
        if self.is_away():
            raise DatabaseAway("away")
        return super().run(work)


class House:
    """A worker's parts around one simulated endpoint."""

    def __init__(
        self,
        ledger: Ledger,
        simulator: SimulatorThread,
        folder: Path,
        clock: FakeClock,
        *,
        is_proven: bool = True,
        slots: Slots[Received] | None = None,
        store: MemoryGateStore | None = None,
        told: ToldLimits | None = None,
        **settings: Any,
    ) -> None:
        self.told = told or ToldLimits()
        loaded = load_settings(base_url=simulator.url, home=folder, _env_file=None, **settings)
        self.simulator, self.clock, self.endpoint = simulator, clock, loaded.endpoint
        self.ledger = AwayWhenTold(ledger.engine)
        self.client = EndpointClient(EndpointConfig(simulator.url, pool_size=4))
        self.writer = GroupWriter(
            self.ledger,
            worker_id="w1",
            endpoint=self.endpoint,
            clock=clock,
            window_s=0.0,
            find_price=lambda model: self.route.find_price(model),
        )
        self.store = MemoryGateStore() if store is None else store
        self.slots: Slots[Received] = Slots(4) if slots is None else slots
        self.is_paused = False
        self.credentials = Credentials(loaded, "ledger", clock)
        self.gates = KeyGates(self.store, clock, probe_ttl_s=60.0, keys=self.credentials.names)
        self.spool = SpoolFile(loaded.spool_folder, "w1")
        self.facts = BatchFacts(clock, endpoint=self.endpoint)
        self.route = Route(
            self.endpoint,
            client=self.client,
            credentials=self.credentials,
            gates=self.gates,
            writer=self.writer,
            rules=RetryRules(),
            clock=clock,
            prices=open_price_book(loaded),
            is_proven=is_proven,
            is_stopping=lambda: self.slots.is_stopping,
            passes_priority=loaded.upstream_priority == "vllm",
            rng=random.Random(1),
            told=self.told,
        )
        self.routes = Routes((self.route,), clock=clock)
        self.executor = Executor(
            routes=self.routes,
            writer=self.writer,
            spool=self.spool,
            clock=clock,
            is_stopping=lambda: self.slots.is_stopping,
            is_paused=lambda: self.is_paused,
            note_tokens=self.facts.note_answer,
        )
        self.pool = ThreadPoolExecutor(16)
        self.dispatcher = Dispatcher(
            self.executor,
            self.slots,
            writer=self.writer,
            spool=self.spool,
            clock=clock,
            spawn=self.pool.submit,
            ahead_limit=4,
            on_ahead=lambda ahead: None,
        )
        self.writer.start()

    def fetch_gate(self) -> Gate | None:
        """The gate of the endpoint or of a key that is shut; None: all are open."""
        stores = (self.store, *map(self.store.of_key, self.credentials.names()))
        return next((gate for gate in (one.fetch() for one in stores) if gate is not None), None)

    def put(self, model: str = MODEL, **facts: Any) -> str:
        request = parse_request({"model": model, "messages": [{"role": "user", "content": "Say hello"}]})
        return put(self.ledger, make_job(request, endpoint=self.endpoint, **facts))[0].id

    def again(self, id_: str, *, after_s: float = 3000) -> None:
        """Time passes until the job is due, and the relay hands it out."""
        self.clock.advance(after_s)
        now_ms = self.clock.now_ms()
        self.ledger.run(lambda c: take_due(c, self.endpoint, room=9, now_ms=now_ms))
        assert state(self.ledger, id_) == "queued"

    def wait_for_the_database(self) -> None:
        """Returns when the writer has seen that it is back."""
        self.writer.begin(lambda connection: None).result(20)

    def receive(self, id_: str, *, is_bulk: bool = False) -> Future[Report]:
        """The job's message is received; the report comes once."""
        reported: Future[Report] = Future()
        self.dispatcher.receive(Received(id_, is_bulk, reported.set_result, lambda: None))
        return reported

    def adopt(self, job: NewJob) -> Report:
        """A message with its own request is received."""
        report = write_down(self.writer, job, now_ms=self.clock.now_ms())
        return self.receive(job.id).result(20) if report is None else report

    def execute(self, id_: str) -> Verdict:
        return self.receive(id_).result(20).verdict

    def close(self) -> None:
        self.dispatcher.stop()
        assert self.slots.wait_until_idle(lambda: False, timeout_s=10)
        self.pool.shutdown()
        assert self.writer.stop(10)
        self.client.close()
