"""A worker's parts put together: its way out."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from worker.errors import ExitCode
from worker.runtime import WorkerRuntime
from worker.settings import load_settings
from worker.storage.engine import Ledger


@pytest.mark.parametrize("is_daemon", [True, False])
def test_the_interpreter_waits_for_the_way_out_also_where_a_daemon_thread_began_it(
    sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_daemon: bool
) -> None:
    """A daemon thread that dies begins it; else Celery, which is done first, would take the process with it."""
    settings = load_settings(
        home=tmp_path,
        base_url="http://127.0.0.1:1",
        broker_url="redis://127.0.0.1:1/0",
        api_key="k",
        _env_file=None,
    )
    runtime = WorkerRuntime(settings, sqlite_ledger)
    began: list[bool] = []
    monkeypatch.setattr(runtime, "_shut_down", lambda: began.append(threading.current_thread().daemon))
    ending = threading.Thread(target=runtime.begin_shutdown, daemon=is_daemon)
    ending.start()
    ending.join(10)
    assert runtime._shutdown is not None
    runtime._shutdown.join(10)
    assert began == [False]
    assert runtime.exit_code is ExitCode.OK
