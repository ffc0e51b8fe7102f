"""A shop to work in: a private Valkey, a database of either kind, a simulated endpoint, real processes."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.support.folders import make_short_folder
from tests.support.processes import Shop, SimulatorProcess
from tests.support.scene import Scene, open_scene
from worker.settings import Settings, load_settings
from worker.storage.engine import Ledger, open_ledger


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: sockets go below it."""
    path = make_short_folder()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def simulator(request: pytest.FixtureRequest) -> Iterator[SimulatorProcess]:
    """The simulated endpoint; `@pytest.mark.simulator("--latency", "2")` sets its options."""
    mark = request.node.get_closest_marker("simulator")
    process = SimulatorProcess(*(mark.args if mark else ("--latency", "0.05")))
    yield process
    process.close()


@pytest.fixture
def shop(folder: Path, simulator: SimulatorProcess) -> Iterator[Shop]:
    """Commands with the embedded stack and SQLite, against the simulator as if it were a real endpoint."""
    shop = Shop(folder, {"home": folder / ".antrean", "base_url": simulator.url, "api_key": "k"})
    yield shop
    shop.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def plant(
    request: pytest.FixtureRequest, folder: Path, simulator: SimulatorProcess, valkey: Any, valkey_path: str
) -> Iterator[Shop]:
    """Workers on a private Valkey and a database of either kind, with a lease of 2 s."""
    settings: dict[str, object] = {
        "home": folder / ".antrean",
        "base_url": simulator.url,
        "api_key": "k",
        "broker_url": f"redis+socket://{valkey_path}?virtual_host=0",
        "lease_s": 2,
        "endpoint_name": f"endpoint-{uuid.uuid4().hex[:8]}",
    }
    if request.param == "postgresql":
        make: Callable[[str], str] = request.getfixturevalue("migrated_postgres_url")
        settings["database_url"] = make(f"p{uuid.uuid4().hex[:12]}")
    else:
        shutil.copy(request.getfixturevalue("migrated_sqlite"), folder / "plant.db")
        settings["database_url"] = f"sqlite:///{folder}/plant.db"
    shop = Shop(folder, settings)
    yield shop
    shop.close()


@pytest.fixture
def plant_settings(plant: Shop) -> Settings:
    return load_settings(**plant.settings, _env_file=None)


@pytest.fixture
def plant_ledger(plant_settings: Settings) -> Iterator[Ledger]:
    ledger = open_ledger(plant_settings)
    yield ledger
    ledger.dispose()


@pytest.fixture
def foreign(plant: Shop) -> Celery:
    """A Celery app of somebody else, on the same broker."""
    return Celery("foreign", broker=str(plant.settings["broker_url"]), set_as_current=False)


@pytest.fixture
def send(foreign: Celery) -> Callable[..., str]:
    def send(*, task_id: str | None = None, options: dict[str, Any] | None = None, **kwargs: Any) -> str:
        id_ = task_id or uuid.uuid4().hex
        foreign.send_task(
            "antrean.complete_chat", kwargs=kwargs, task_id=id_, ignore_result=True, **(options or {})
        )
        return id_

    return send


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with open_scene() as scene:
        yield scene
