"""A proxy on a unix socket or a port that can freeze, cut, and swallow one answer."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

_CHUNK = 64 * 1024


class Proxy:
    """Forwards every connection to `upstream` (a unix socket's path, or host and port) until told otherwise.

    It listens on a unix socket at `listen`, or, where that is None, on a free port of 127.0.0.1 (`port`).
    """

    def __init__(self, upstream: str | tuple[str, int], *, listen: Path | None = None) -> None:
        self._upstream = upstream
        self._flows = threading.Event()  # cleared: half open, nothing moves and nothing ends
        self._flows.set()
        self._swallow_after: bytes | None = None
        self.swallowed = threading.Event()
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        if listen is None:
            self._server = socket.create_server(("127.0.0.1", 0))
            self.port: int = self._server.getsockname()[1]
        else:
            self._server = socket.socket(socket.AF_UNIX)
            self._server.bind(str(listen))
            listen.chmod(0o777)
            self._server.listen(64)
        self._is_closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """From now on bytes are taken and go nowhere; connections stay open."""
        self._flows.clear()

    def thaw(self) -> None:
        """What was held back goes on."""
        self._flows.set()

    def cut(self) -> None:
        """Ends every connection; new ones are taken."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for one in pair:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def swallow_answer_to(self, mark: bytes) -> None:
        """The next message from a client that holds `mark` is passed on; its answer is dropped with the connection."""
        self.swallowed.clear()
        self._swallow_after = mark

    def close(self) -> None:
        self._is_closed = True
        self._flows.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                if isinstance(self._upstream, str):
                    server = socket.socket(socket.AF_UNIX)
                    server.connect(self._upstream)
                else:
                    server = socket.create_connection(self._upstream)
            except OSError:
                client.close()
                continue
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            waits_for_answer = threading.Event()
            threading.Thread(target=self._pump, args=(pair, 0, waits_for_answer), daemon=True).start()
            threading.Thread(target=self._pump, args=(pair, 1, waits_for_answer), daemon=True).start()

    def _pump(
        self, pair: tuple[socket.socket, socket.socket], way: int, waits_for_answer: threading.Event
    ) -> None:
        source, target = pair[way], pair[1 - way]
        try:
            while data := source.recv(_CHUNK):
                self._flows.wait()
                if way == 0:
                    with self._lock:
                        mark = self._swallow_after
                        if mark is not None and mark in data:
                            self._swallow_after = None
                            waits_for_answer.set()
                elif waits_for_answer.is_set():
                    self.swallowed.set()
                    break
                target.sendall(data)
        except OSError:
            pass
        finally:
            with self._lock:
                self._pairs.discard(pair)
            for one in pair:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
