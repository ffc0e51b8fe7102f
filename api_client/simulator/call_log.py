"""A file with one JSON line for each paid call. It survives a kill of the simulator."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import orjson

FLUSH_INTERVAL_S = 0.05


class CallLog:
    """Appends `{"job", "status", "at"}` lines, `at` in Unix seconds, within `FLUSH_INTERVAL_S` of the call.

    Flushed lines survive a kill of the process, but not a loss of power. Raises OSError if `path` cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._lines: list[bytes] = []

    def append(self, job: str, status: int) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_INTERVAL_S, self.flush)
        self._lines.append(orjson.dumps({"job": job, "status": status, "at": time.time()}))

    def flush(self) -> None:
        """Writes all lines to the file, without a sync to disk."""
        if self._lines:
            rest = memoryview(b"\n".join(self._lines) + b"\n")
            self._lines.clear()
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def close(self) -> None:
        self.flush()
        os.close(self._descriptor)
