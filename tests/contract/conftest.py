"""A worker's parts, built as a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection as KombuConnection
from kombu.asynchronous import Hub, set_event_loop

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.thread import SimulatorThread
from tests.support.clock import FakeClock
from tests.support.house import KEY, House
from tests.support.ledger import ENDPOINT
from tests.support.reader import NOTED_AS_OURS
from tests.support.writing import TroubledLedger
from worker.settings import KEY_SETTINGS
from worker.storage.engine import Ledger
from worker.storage.writer import GroupWriter


@pytest.fixture
def build(ledger: Ledger, clock: FakeClock, tmp_path: Path) -> Iterator[Callable[..., House]]:
    opened: list[Any] = []

    def make(*, simulated: dict[str, Any] | None = None, **settings: Any) -> House:
        simulator = SimulatorThread(SimulatorConfig(**{"latency_s": 0.0, "key": KEY} | (simulated or {})))
        simulator.__enter__()
        if not settings.keys() & set(KEY_SETTINGS):
            settings.setdefault("api_key", KEY)
        house = House(ledger, simulator, tmp_path / "house", clock, **settings)
        opened.append(house)
        return house

    yield make
    for house in opened:
        house.close()
        house.simulator.__exit__(None, None, None)


@pytest.fixture
def troubled(ledger: Ledger) -> TroubledLedger:
    return TroubledLedger(ledger)


@pytest.fixture
def writer(troubled: TroubledLedger, clock: FakeClock) -> Iterator[GroupWriter]:
    writer = GroupWriter(troubled, worker_id="w1", endpoint=ENDPOINT, clock=clock, window_s=0.002)  # type: ignore[arg-type]
    writer.start()
    yield writer
    troubled.is_away = False
    troubled.go_on.set()
    assert writer.stop(10)


@pytest.fixture
def connection(valkey: redis.Redis, valkey_path: str) -> Iterator[KombuConnection]:
    """Through which foreign apps publish, and kombu's channel reads."""
    with KombuConnection(f"redis+socket://{valkey_path}", transport_options=NOTED_AS_OURS) as made:
        yield made


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Celery's event loop, as a worker runs it."""
    made = Hub()
    set_event_loop(made)
    yield made
    made.close()
    set_event_loop(None)
