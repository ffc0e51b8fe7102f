"""A worker's parts, built as a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection as KombuConnection
from kombu.asynchronous import Hub, set_event_loop

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.thread import SimulatorThread
from tests.support.clock import FakeClock
from tests.support.endpoints import Endpoint, Open, Route
from tests.support.house import KEY, House
from tests.support.ledger import ENDPOINT
from tests.support.reader import NOTED_AS_OURS
from tests.support.writing import TroubledLedger
from worker.settings import KEY_SETTINGS
from worker.storage.engine import Ledger
from worker.storage.writer import GroupWriter
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.redis_store import RedisGateStore
from worker.throttle.store import GateStore, MemoryGateStore


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


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of commands: their ledger is below it, and nobody listens at their endpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTREAN_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("ANTREAN_ENDPOINT_NAME", ENDPOINT)
    monkeypatch.setenv("ANTREAN_BASE_URL", "http://127.0.0.1:9/v1")
    return tmp_path


@pytest.fixture
def serve() -> Iterator[Open]:
    """Opens an endpoint that has these routes."""
    opened: list[Endpoint] = []

    def open_one(routes: Mapping[str, Route]) -> Endpoint:
        opened.append(Endpoint(routes))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture(params=["memory", "valkey"])
def store(request: pytest.FixtureRequest) -> GateStore:
    """An endpoint's gate store, in memory and in a real Valkey."""
    if request.param == "memory":
        return MemoryGateStore()
    return RedisGateStore(request.getfixturevalue("valkey"), "https://endpoint.test", goes_by_callers=True)


@pytest.fixture
def make(store: GateStore, clock: FakeClock) -> Callable[[], Gatekeeper]:
    """Makes the gatekeeper of one more process on the same store."""
    return lambda: Gatekeeper(store, clock, probe_ttl_s=60.0)
