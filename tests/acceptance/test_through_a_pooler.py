"""Workers on a PostgreSQL behind a real PgBouncer, with fewer sessions than they have connections."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.audit import assert_sound, states
from tests.support.pooler import Pooler
from tests.support.processes import Shop, SimulatorProcess, wait_until
from worker.settings import load_settings
from worker.storage.engine import open_ledger

pytestmark = [pytest.mark.postgresql, pytest.mark.full]
_JOBS = 300


@pytest.fixture
def pooled(
    folder: Path,
    simulator: SimulatorProcess,
    valkey: Any,
    valkey_path: str,
    postgres_url: Callable[[str], str],
) -> Iterator[Shop]:
    with closing(Pooler(postgres_url(f"b{uuid.uuid4().hex[:12]}"), mode="transaction", size=4)) as pooler:
        shop = Shop(
            folder,
            {
                "home": folder / ".antrean",
                "base_url": simulator.url,
                "api_key": "k",
                "broker_url": f"redis+socket://{valkey_path}?virtual_host=0",
                "endpoint_name": f"endpoint-{uuid.uuid4().hex[:8]}",
                "database_url": pooler.url,
                "lease_s": 2,
            },
        )
        yield shop
        shop.close()


def test_two_workers_behind_a_pooler_in_transaction_mode_pay_for_nothing_twice(
    pooled: Shop, simulator: SimulatorProcess
) -> None:
    assert pooled.antrean("migrate").code == 0
    assert pooled.antrean("check").code == 0
    lines = [
        json.dumps({"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": f"Say {i}."}]})
        for i in range(_JOBS)
    ]
    (pooled.folder / "requests.jsonl").write_text("\n".join(lines))
    assert pooled.antrean("submit", "requests.jsonl").code == 0
    workers = [pooled.worker(concurrency=32), pooled.worker(concurrency=32)]
    ledger = open_ledger(load_settings(**pooled.settings, _env_file=None))
    wait_until(lambda: states(ledger)["succeeded"] == _JOBS, within_s=60, what="all are done")
    assert [worker.poll() for worker in workers] == [None, None]
    assert simulator.stats()["calls"] == _JOBS
    assert_sound(ledger)
    ledger.dispose()
    logs = "".join(path.read_text() for path in pooled.folder.glob("*.log"))
    assert "ledger.away" not in logs
    assert "internal_error" not in logs
    assert list((pooled.folder / ".antrean" / "spool").glob("rejected*")) == []
