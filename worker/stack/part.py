"""A part: a kept process of `antrean up` whose output is shown line by line."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.stack.child import Child
from worker.stack.kept import End, KeptProcess
from worker.stack.lines import LineSplitter

_LAST_OUTPUT_S = 1.0
_PIPE_BYTES = 1024 * 1024


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


class Part(KeptProcess):
    """A kept process. `show` gets its output lines; `report` gets a sentence when it died and will be started again."""

    def __init__(self, recipe: Recipe, show: Callable[[str], None], report: Callable[[str], None]) -> None:
        super().__init__(
            recipe.name,
            self._start_child,
            self._tell,
            stop_limit_s=recipe.stop_limit_s,
            read_rest=self._read_to_the_end,
        )
        self.recipe = recipe
        self.is_ready = False  # set by the supervisor
        self._show = show
        self._say = report
        self._output: _Output | None = None
        self._transport: asyncio.ReadTransport | None = None

    def _tell(self, end: End) -> None:
        self.is_ready = False
        self._say(f"{self.name} died ({end.reason}); it is started again in {end.restarts_in_s:g} s")

    async def _start_child(self, adopt: Callable[[Child], Child]) -> None:
        ours, theirs = os.pipe()
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
            with contextlib.suppress(OSError):  # the user's limit for pipe buffers is reached
                fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            self._output = _Output(self._show)
            output = self._output
            self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: output, os.fdopen(ours, "rb", 0)
            )
            # The child holds the reading end, too. If this process is killed, the child's last writes still succeed;
            # a failing write could break its shutdown.
            recipe = self.recipe
            adopt(Child(recipe.argv, env=recipe.env, cwd=recipe.cwd, log=theirs, pass_fds=[ours]))
        finally:
            os.close(theirs)

    async def _read_to_the_end(self) -> None:
        if self._output is not None and self._transport is not None:
            await self._output.wait_until_read(_LAST_OUTPUT_S)
            self._transport.close()


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
        """Returns at the end of file, or after `limit_s` if another process still holds the pipe open."""
        try:
            await asyncio.wait_for(self._is_read.wait(), limit_s)
        except TimeoutError:
            return
