"""The output of `antrean up`: whole lines, written without ever waiting for the reader.

A terminal that was stopped with Ctrl-S, or a pager that is not scrolled, must not block the workers.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections import deque

from worker.text.wrapping import terminal_width

_LIMIT_BYTES = 1024 * 1024
_RETRY_S = 0.05
_LAST_WORDS_S = 1.0
_CTRL_C = 2  # columns: the terminal echoes ^C before the line that follows


class Screen:
    """Writes lines to a file descriptor, in order. Lines beyond `limit_bytes` unread bytes are dropped and counted."""

    def __init__(self, descriptor: int, *, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._left_out = 0
        self._is_gone = False
        self._retry: asyncio.TimerHandle | None = None
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    @property
    def width(self) -> int | None:
        """The columns of the terminal that a line may fill; None for a file or a pipe."""
        columns = terminal_width(self._descriptor)
        return None if columns is None else columns - _CTRL_C

    def line(self, text: str) -> None:
        """Prints `text` now, or as soon as the descriptor can be written. Must be called in the event loop."""
        if self._is_gone:
            return
        if self._waiting_bytes > self._limit_bytes:
            self._left_out += 1
            return
        if self._left_out:
            text = f"… {self._left_out:,} lines were left out here: the reader was too slow\n{text}"
            self._left_out = 0
        data = text.encode(errors="replace") + b"\n"
        self._waiting_bytes += len(data)
        self._chunks.extend(data[at : at + select.PIPE_BUF] for at in range(0, len(data), select.PIPE_BUF))
        self._drain()

    def close(self) -> None:
        """Prints what is left. Waits for the reader for a second at most."""
        if self._retry is not None:
            self._retry.cancel()
        end_s = time.monotonic() + _LAST_WORDS_S
        while self._chunks and time.monotonic() < end_s:
            if not self._write_some():
                self._poll.poll(_RETRY_S * 1000)

    def _drain(self) -> None:
        self._retry = None
        if not self._write_some():
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._drain)

    def _write_some(self) -> bool:
        """Whether all was written. When poll() reports the descriptor as writable, PIPE_BUF bytes do not block."""
        while self._chunks:
            if not self._poll.poll(0):
                return False
            chunk = self._chunks.popleft()
            try:
                written = os.write(self._descriptor, chunk)
            except OSError:  # the reader or the terminal is gone; the parts go on
                self._is_gone = True
                self._chunks.clear()
                return True
            self._waiting_bytes -= written
            if written < len(chunk):
                self._chunks.appendleft(chunk[written:])
        return True
