"""A kept process: started, started again when it ends by itself, and stopped for good when asked."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from worker.errors import Unreachable
from worker.stack import kept
from worker.stack.child import Child
from worker.stack.kept import End, KeptProcess

WAITS = [sys.executable, "-S", "-c", "import signal; signal.pause()"]
LIMIT_S = 20.0


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_RESTART_BASE_S", 0.0)


class Ends:
    """What was reported, and an event for each."""

    def __init__(self) -> None:
        self.all: list[End] = []
        self._changed = asyncio.Event()

    def add(self, end: End) -> None:
        self.all.append(end)
        self._changed.set()

    async def wait_for(self, count: int) -> None:
        while len(self.all) < count:
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), LIMIT_S)


def child(folder: Path, argv: list[str]) -> Child:
    return Child(argv, env={"PATH": os.defpath}, cwd=folder, log=folder / "log")


def run(work: Callable[[Callable[[KeptProcess], None]], Awaitable[None]]) -> None:
    """Runs `work`, which says what is to be reaped, and stops whatever it left."""

    async def main() -> None:
        processes: list[KeptProcess] = []
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, lambda: [one.reap() for one in processes])
        try:
            await work(processes.append)
        finally:
            for one in processes:
                await one.stop(is_hurried=True)
            loop.remove_signal_handler(signal.SIGCHLD)

    asyncio.run(main())


def test_one_that_is_killed_is_reported_and_started_again(tmp_path: Path) -> None:
    async def work(reap: Callable[[KeptProcess], None]) -> None:
        ends, started = Ends(), asyncio.Event()

        async def launch(adopt: Callable[[Child], Child]) -> None:
            adopt(child(tmp_path, WAITS))
            started.set()

        process = KeptProcess("one", launch, ends.add, stop_limit_s=5)
        reap(process)
        await process.start()
        assert process.child is not None
        first = process.child.pid
        started.clear()
        os.kill(first, signal.SIGKILL)
        await asyncio.wait_for(started.wait(), LIMIT_S)
        assert ends.all == [End(-9, "signal 9, SIGKILL", 0.0)]
        assert (process.restart_count, process.is_alive) == (1, True)
        assert process.child.pid != first
        await process.stop()
        assert not process.is_alive
        assert len(ends.all) == 1, "a stop that was asked for is no end to report"

    run(work)


def test_a_restart_that_fails_is_told_as_such_and_not_as_another_death_of_the_last_child(
    tmp_path: Path,
) -> None:
    async def work(reap: Callable[[KeptProcess], None]) -> None:
        ends, starts = Ends(), 0
        never_ready: list[Child] = []

        async def launch(adopt: Callable[[Child], Child]) -> None:
            nonlocal starts
            starts += 1
            if starts == 2:
                never_ready.append(adopt(child(tmp_path, WAITS)))
            if starts in (2, 3):
                raise Unreachable("the disk is full")
            adopt(child(tmp_path, WAITS))

        process = KeptProcess("one", launch, ends.add, stop_limit_s=5)
        reap(process)
        await process.start()
        assert process.child is not None
        os.kill(process.child.pid, signal.SIGKILL)
        await ends.wait_for(3)
        assert never_ready[0].status is not None, "what was started and never ready is not left behind"
        assert [(end.status, end.reason) for end in ends.all] == [
            (-9, "signal 9, SIGKILL"),
            (None, "the disk is full"),
            (None, "the disk is full"),
        ]

    run(work)


def test_a_first_start_that_fails_is_raised(tmp_path: Path) -> None:
    async def work(reap: Callable[[KeptProcess], None]) -> None:
        ends = Ends()

        async def launch(adopt: Callable[[Child], Child]) -> None:
            raise Unreachable("there is no such program")

        process = KeptProcess("one", launch, ends.add, stop_limit_s=5)
        with pytest.raises(Unreachable, match="no such program"):
            await process.start()
        assert ends.all == []

    run(work)


def test_one_that_is_not_restarted_ends_once(tmp_path: Path) -> None:
    async def work(reap: Callable[[KeptProcess], None]) -> None:
        ends, read = Ends(), []

        async def launch(adopt: Callable[[Child], Child]) -> None:
            adopt(child(tmp_path, [sys.executable, "-S", "-c", "raise SystemExit(3)"]))

        async def read_rest() -> None:
            read.append("all")

        process = KeptProcess(
            "one", launch, ends.add, stop_limit_s=5, is_restarted=False, read_rest=read_rest
        )
        reap(process)
        await process.start()
        await ends.wait_for(1)
        assert ends.all == [End(3, "exit code 3", None)]
        assert read == ["all"], "its last output is read before its end is told"
        assert process.restart_count == 0

    run(work)
