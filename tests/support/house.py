"""A worker's parts around one simulated endpoint, and a ledger that is away when it is told to be."""

from __future__ import annotations

import random
from collections.abc import Callable
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
from worker.attempt.execute import Executor, Verdict
from worker.attempt.slots import Slots
from worker.intake.submit import make_job
from worker.policy.retry import RetryRules
from worker.settings import load_settings
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway
from worker.storage.group import GroupWriter
from worker.storage.window import take_due
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.store import MemoryGateStore
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
        **settings: Any,
    ) -> None:
        told = load_settings(base_url=simulator.url, home=folder, _env_file=None, **settings)
        self.simulator, self.clock, self.endpoint = simulator, clock, told.endpoint
        self.ledger = AwayWhenTold(ledger.engine)
        self.client = EndpointClient(EndpointConfig(simulator.url, pool_size=4))
        self.writer = GroupWriter(
            self.ledger, worker_id="w1", endpoint=self.endpoint, clock=clock, window_s=0.0
        )
        self.store, self.slots = MemoryGateStore(), Slots(4)
        self.gatekeeper = Gatekeeper(self.store, clock, probe_ttl_s=60.0)
        self.spool = SpoolFile(told.spool_folder, "w1")
        self.credentials = Credentials(told)
        self.executor = Executor(
            client=self.client,
            credentials=self.credentials,
            writer=self.writer,
            gatekeeper=self.gatekeeper,
            slots=self.slots,
            spool=self.spool,
            rules=RetryRules(),
            clock=clock,
            is_proven=is_proven,
            rng=random.Random(1),
        )
        self.writer.start()

    def put(self, model: str = MODEL, **facts: Any) -> str:
        request = parse_request({"model": model, "messages": [{"role": "user", "content": "Say hello"}]})
        return put(self.ledger, make_job(request, endpoint=self.endpoint, **facts))[0].id

    def again(self, id_: str) -> None:
        """Time passes until the job is due, and the relay hands it out."""
        self.clock.advance(3000)
        now_ms = self.clock.now_ms()
        self.ledger.run(lambda c: take_due(c, self.endpoint, room=9, after_batch="", now_ms=now_ms))
        assert state(self.ledger, id_) == "queued"

    def wait_for_the_database(self) -> None:
        """Returns when the writer has seen that it is back."""
        for _ in range(50):
            try:
                return self.writer.call(lambda connection: None)
            except DatabaseAway:
                continue
        raise AssertionError("the writer never came back")

    def execute(self, id_: str) -> Verdict:
        return self.executor.execute(id_, is_bulk=False).verdict

    def close(self) -> None:
        assert self.writer.stop(10)
        self.client.close()
