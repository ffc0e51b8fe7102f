"""The port on which a simulator listens; it may die, so that connections are refused, and come back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

_BACKLOG = 4096
_REBIND_EVERY_S = 0.01


class Listener:
    """Listens on one address. While it is dead the port stays taken, and connections are refused."""

    def __init__(self, host: str, port: int, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        self._host, self._port, self._make_protocol = host, port, make_protocol
        self._server: asyncio.Server | None = None
        self._bound: socket.socket | None = None  # while it is dead
        self._change: asyncio.Task[None] | None = None
        self._is_dead = False

    async def start(self) -> str:
        """Listens, and returns the base URL without a path. Raises OSError if it cannot listen."""
        bound = socket.create_server((self._host, self._port), backlog=_BACKLOG, family=_family(self._host))
        self._port = bound.getsockname()[1]
        await self._listen(bound)
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def stop(self) -> None:
        if self._change is not None:
            self._change.cancel()
            with suppress(asyncio.CancelledError):
                await self._change
        if self._server is not None:
            self._server.close()
        if self._bound is not None:
            self._bound.close()

    def set_dead(self, is_dead: bool) -> None:
        """Refuses connections from now on, or accepts them again."""
        if self._is_dead == is_dead:
            return
        self._is_dead = is_dead
        if self._change is None or self._change.done():
            self._change = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        while self._is_dead == (self._server is not None):
            if self._server is not None:
                self._server.close()
                await asyncio.sleep(0)
                self._server = None
                self._bound = await self._take_port()
            else:
                assert self._bound is not None
                await self._listen(self._bound)
                self._bound = None  # it is the server's

    async def _listen(self, bound: socket.socket) -> None:
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
        self._server = await asyncio.get_running_loop().create_server(
            self._make_protocol, sock=bound, backlog=_BACKLOG
        )

    async def _take_port(self) -> socket.socket:
        """Binds without listening, so that nobody else gets the port. The old socket may take a moment to close."""
        while True:
            bound = socket.socket(_family(self._host), socket.SOCK_STREAM)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind((self._host, self._port))
            except OSError:
                bound.close()
                await asyncio.sleep(_REBIND_EVERY_S)
            else:
                return bound


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
