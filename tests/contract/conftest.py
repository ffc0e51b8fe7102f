"""A worker's parts, built as a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.thread import SimulatorThread
from tests.support.clock import FakeClock
from tests.support.house import KEY, House
from worker.storage.engine import Ledger


@pytest.fixture
def build(ledger: Ledger, clock: FakeClock, tmp_path: Path) -> Iterator[Callable[..., House]]:
    opened: list[Any] = []

    def make(*, simulated: dict[str, Any] | None = None, **settings: Any) -> House:
        simulator = SimulatorThread(SimulatorConfig(**{"latency_s": 0.0, "key": KEY} | (simulated or {})))
        simulator.__enter__()
        if "api_key_file" not in settings:
            settings.setdefault("api_key", KEY)
        house = House(ledger, simulator, tmp_path / "house", clock, **settings)
        opened.append(house)
        return house

    yield make
    for house in opened:
        house.close()
        house.simulator.__exit__(None, None, None)
