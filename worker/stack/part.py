"""A part of the stack: a child process whose output is shown, and that is started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.errors import AntreanError
from worker.stack.child import Child
from worker.stack.lines import LineSplitter

_RESTART_BASE_S = 0.5
_RESTART_CAP_S = 30.0
_HEALTHY_AFTER_S = 60.0
_LAST_OUTPUT_S = 1.0
_PIPE_BYTES = 1024 * 1024
_HURRY_LIMIT_S = 3.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a part is started and how long its stop may take. `env` holds secrets: never log it."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    stop_limit_s: float

    def __repr__(self) -> str:
        return f"Recipe({self.name!r})"


def decide_restart_delay_s(failures: int) -> float:
    """Seconds to wait after the `failures`-th early end in a row (0-based): 0.5, 1, 2 … 30."""
    return min(_RESTART_CAP_S, _RESTART_BASE_S * 2.0 ** min(failures, 10))


def describe_status(status: int | None) -> str:
    """How a process ended, in words: `exit code 3`, `signal 9, SIGKILL`."""
    if status is None:
        return "it could not be started"
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {-status}, {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


class Part:
    """Kept alive by `run` until `stop`. `show` gets its output a line at a time, `report` what became of it."""

    def __init__(self, recipe: Recipe, show: Callable[[str], None], report: Callable[[str], None]) -> None:
        self.recipe = recipe
        self.child: Child | None = None
        self.is_ready = False  # set by whoever sees that it is
        self.started_at_s = 0.0  # wall clock, to tell its row in the ledger from an older process's
        self.restart_count = 0
        self._show = show
        self._report = report
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def is_alive(self) -> bool:
        return self.child is not None and self.child.status is None

    def start(self) -> None:
        """Starts it, now and again each time it ends."""
        self._task = asyncio.create_task(self._keep())

    def reap(self) -> None:
        """Notices its end. Called on SIGCHLD."""
        if self.child is not None:
            self.child.reap()

    async def stop(self) -> None:
        """Returns when it is over and is not started again."""
        if self._task is not None:
            self._task.cancel()
        if self.child is not None:
            await self.child.stop(self.recipe.stop_limit_s)

    def hurry(self) -> None:
        """Shortens a stop under way: a cold shutdown now, SIGKILL to its group in 3 s."""
        if self.child is not None and not self.child.reap():
            self.child.send(signal.SIGQUIT)
            asyncio.get_running_loop().call_later(_HURRY_LIMIT_S, self.child.kill_unless_over)

    async def _keep(self) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            ended_how = await self._live()
            self.is_ready = False
            if loop.time() - started_s >= _HEALTHY_AFTER_S:
                failures = 0
            delay_s = decide_restart_delay_s(failures)
            failures += 1
            self._report(f"{self.name} died ({ended_how}); it is started again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            self.restart_count += 1

    async def _live(self) -> str:
        """One life of the child, from its start to the last line it wrote; how it ended."""
        ours, theirs = os.pipe()
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
            with contextlib.suppress(OSError):  # of a user who has many pipes
                fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            output = _Output(self._show)
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: output, os.fdopen(ours, "rb", 0)
            )
            try:
                self.started_at_s = time.time()
                # It holds the reading end, too: when we are killed, its last words go nowhere, instead of failing
                # and with them its way out.
                self.child = Child(
                    self.recipe.argv,
                    env=self.recipe.env,
                    cwd=self.recipe.cwd,
                    log=theirs,
                    pass_fds=[ours],
                )
            finally:
                os.close(theirs)
        except (AntreanError, OSError) as exc:
            return str(exc)
        await self.child.ended.wait()
        await output.wait_until_read(_LAST_OUTPUT_S)
        transport.close()
        return describe_status(self.child.status)


class _Output(asyncio.Protocol):
    """The reading end of a child's output."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._splitter = LineSplitter()
        self._is_read = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        for line in self._splitter.feed(data):
            self._show(line)

    def connection_lost(self, _error: Exception | None) -> None:
        for line in self._splitter.end():
            self._show(line)
        self._is_read.set()

    async def wait_until_read(self, limit_s: float) -> None:
        """Returns at the end of file, or after `limit_s` if somebody else still holds the pipe."""
        try:
            await asyncio.wait_for(self._is_read.wait(), limit_s)
        except TimeoutError:
            return
