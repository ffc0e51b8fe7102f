"""The simulator as a child process. It is ready when it prints its address on stdout."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from worker.errors import Unreachable
from worker.files.home import last_line, open_log
from worker.stack.child import Child

_LISTENING = re.compile(rb"listening on (https?://\S+)")
_START_LIMIT_S = 30.0


class SimulatorProcess:
    """Starts a simulator, keeps its `url`, and copies what it prints to its log for as long as it runs."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.url = ""
        self._argv, self._env, self._cwd, self._log = argv, {**env, "PYTHONUNBUFFERED": "1"}, cwd, log
        self._drain: asyncio.Task[None] | None = None

    async def launch(self, adopt: Callable[[Child], Child]) -> None:
        """Returns when it listens. Raises Unreachable, with its last line, if it ends first or prints no address."""
        child = adopt(Child(self._argv, env=self._env, cwd=self._cwd, log=self._log, pipe_stdout=True))
        lines = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), child.process.stdout)
        listening: asyncio.Future[str] = loop.create_future()
        self._drain = asyncio.create_task(self._copy(lines, listening))
        try:
            self.url = await asyncio.wait_for(listening, _START_LIMIT_S)
        except TimeoutError:
            await child.stop(1.0)
            raise Unreachable(
                f"the simulator did not say where it listens within {_START_LIMIT_S:.0f} s"
            ) from None
        if not self.url:
            await child.stop(1.0)
            raise Unreachable(f"the simulator ended before it listened: {last_line(self._log)}")

    async def _copy(self, lines: asyncio.StreamReader, listening: asyncio.Future[str]) -> None:
        with open_log(self._log) as output:
            # Chunks, not lines: the length of a line has no limit.
            seen = b""
            while chunk := await lines.read(65536):
                output.write(chunk)
                output.flush()
                if not listening.done():
                    seen = (seen + chunk)[-65536:]
                    found = _LISTENING.search(seen[: seen.rfind(b"\n") + 1])
                    if found is not None:
                        listening.set_result(found[1].decode())
        if not listening.done():
            listening.set_result("")
