"""A worker's parts put together: its way out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.errors import ExitCode, Unreachable
from worker.runtime import WorkerRuntime
from worker.settings import load_settings
from worker.storage.engine import Ledger


def make_runtime(ledger: Ledger, folder: Path) -> WorkerRuntime:
    settings = load_settings(
        home=folder,
        base_url="http://127.0.0.1:1",
        broker_url="redis://127.0.0.1:1/0",
        api_key="k",
        _env_file=None,
    )
    return WorkerRuntime(settings, ledger)


class Pool:
    """Celery's, on a machine where so many threads begin."""

    def __init__(self, threads: int) -> None:
        self.begun: list[threading.Thread] = []
        self._most = threads

    def apply_async(self, work: Callable[[], object], **_: Any) -> None:
        if len(self.begun) == self._most:
            raise RuntimeError("can't start new thread")
        self.begun.append(threading.Thread(target=work))
        self.begun[-1].start()


@pytest.mark.parametrize("threads", [0, 1])
def test_a_worker_whose_pool_has_too_few_threads_does_not_say_that_it_is_ready(
    sqlite_ledger: Ledger, tmp_path: Path, threads: int
) -> None:
    """With none it would claim jobs and call none. With one, a job that waits to run alone would wait for ever."""
    pool = Pool(threads)
    with pytest.raises(Unreachable, match="no more threads begin: raise the limit"):
        make_runtime(sqlite_ledger, tmp_path).ready(pool)
    assert len(pool.begun) == threads
    for thread in pool.begun:
        thread.join(10)
        assert not thread.is_alive()


def test_a_worker_begins_the_threads_that_it_cannot_do_without(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    pool = Pool(9)
    make_runtime(sqlite_ledger, tmp_path).ready(pool)
    assert len(pool.begun) == 2
    for thread in pool.begun:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("is_daemon", [True, False])
def test_the_interpreter_waits_for_the_way_out_also_where_a_daemon_thread_began_it(
    sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_daemon: bool
) -> None:
    """A daemon thread that dies begins it; else Celery, which is done first, would take the process with it."""
    runtime = make_runtime(sqlite_ledger, tmp_path)
    began: list[bool] = []
    monkeypatch.setattr(
        runtime._shutdown, "_shut_down", lambda: began.append(threading.current_thread().daemon)
    )
    ending = threading.Thread(target=runtime.begin_shutdown, daemon=is_daemon)
    ending.start()
    ending.join(10)
    assert runtime._shutdown._thread is not None
    runtime._shutdown._thread.join(10)
    assert began == [False]
    assert runtime.exit_code is ExitCode.OK
