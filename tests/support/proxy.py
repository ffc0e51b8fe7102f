"""A proxy on a unix socket or a port that can freeze, cut, and swallow one answer."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 64 * 1024


@dataclass(slots=True)
class _Swallow:
    """Answers to messages with `mark`, on connections on which one message held all of `after`, `left` times."""

    mark: bytes
    after: tuple[bytes, ...]
    left: int


@dataclass(slots=True, eq=False)
class _Flow:
    """One connection and the one it is forwarded to; closed by the second of its two pumps."""

    pair: tuple[socket.socket, socket.socket]
    pumps: int = 2
    armed: _Swallow | None = None
    waits_for_answer: _Swallow | None = None


class Proxy:
    """Forwards every connection to `upstream` (a unix socket's path, or host and port) until told otherwise.

    It listens on a unix socket at `listen`, or, where that is None, on a free port of 127.0.0.1 (`port`).
    """

    def __init__(self, upstream: str | tuple[str, int], *, listen: Path | None = None) -> None:
        self._upstream = upstream
        self._flows = threading.Event()  # cleared: half open, nothing moves and nothing ends
        self._flows.set()
        self._swallow: _Swallow | None = None
        self.swallowed = threading.Event()
        self._lock = threading.Lock()
        self._flows_open: set[_Flow] = set()
        self._threads: list[threading.Thread] = []
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
            flows = list(self._flows_open)
        for flow in flows:
            for one in flow.pair:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def swallow_answer_to(self, mark: bytes, *, after: tuple[bytes, ...] = (), times: int = 1) -> None:
        """The next message from a client that holds `mark` is passed on; its answer is dropped with the connection.

        With `after`, only on a connection on which one message has held all of these. `swallowed` is set when it has
        happened `times`.
        """
        self.swallowed.clear()
        self._swallow = _Swallow(mark, after, times)

    def close(self) -> None:
        self._is_closed = True
        self._flows.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            flow = _Flow((client, server))
            with self._lock:
                self._flows_open.add(flow)
            for way in (0, 1):
                thread = threading.Thread(target=self._pump, args=(flow, way), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _connect(self) -> socket.socket:
        if not isinstance(self._upstream, str):
            return socket.create_connection(self._upstream)
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._upstream)
        except OSError:
            server.close()
            raise
        return server

    def _pump(self, flow: _Flow, way: int) -> None:
        source, target = flow.pair[way], flow.pair[1 - way]
        try:
            while data := source.recv(_CHUNK):
                self._flows.wait()
                if way == 0:
                    self._look(flow, data)
                elif flow.waits_for_answer is not None:
                    self._count(flow.waits_for_answer)
                    break
                target.sendall(data)
        except OSError:
            pass
        finally:
            self._end(flow)

    def _look(self, flow: _Flow, data: bytes) -> None:
        with self._lock:
            swallow = self._swallow
            if swallow is None:
                return
            if all(part in data for part in swallow.after):
                flow.armed = swallow
            if flow.armed is swallow and swallow.mark in data:
                flow.waits_for_answer = swallow

    def _count(self, swallow: _Swallow) -> None:
        with self._lock:
            swallow.left -= 1
            if swallow.left <= 0 and self._swallow is swallow:
                self._swallow = None
                self.swallowed.set()

    def _end(self, flow: _Flow) -> None:
        for one in flow.pair:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        with self._lock:
            flow.pumps -= 1
            if flow.pumps:
                return
            self._flows_open.discard(flow)
        for one in flow.pair:
            one.close()
