"""One client's connection: reads requests, and gives one answer to each, in their order."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools

from api_client.simulator.answer import Answer

MAX_BODY_BYTES = 64 * 1024 * 1024
_MAX_QUEUED = 16
_WANTED_HEADERS = {b"authorization", b"api-key", b"x-antrean-job", b"x-antrean-check", b"expect"}


@dataclass(slots=True)
class Request:
    """A whole HTTP request. `headers`: only those that the simulator reads, names in lower case."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes
    keep_alive: bool
    is_http_1_0: bool
    is_too_large: bool = False


class Connection(asyncio.Protocol):
    """Passes one request at a time to `handle`; the next one when the answer to the last was given.

    `handle` must answer, at once or later, with one of `reply`, `cut_off`, `drip` and `reset`; or never answer.
    """

    def __init__(
        self, handle: Callable[[Request, Connection], None], open_connections: set[Connection]
    ) -> None:
        self._handle = handle
        self._open_connections = open_connections
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._current: Request | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._on_gone: Callable[[], None] | None = None
        self._advancing = self._reading_paused = self._writing_paused = False
        self._is_broken = self._is_unreadable = False
        self.on_message_begin()

    # Methods for the handler

    def wait(
        self, delay_s: float | None, then: Callable[[], None] | None, on_gone: Callable[[], None]
    ) -> None:
        """Calls `then` after `delay_s` (None: never), or `on_gone` if the client disconnects first; never both."""
        self._on_gone = on_gone
        if delay_s is not None and then is not None:
            self._timer = self._loop.call_later(delay_s, self._due, then)

    def end_wait(self, then: Callable[[], None]) -> None:
        """Calls `then` in place of a wait that had no end of its own. Only before `on_gone` was called."""
        self._due(then)

    def reply(self, answer: Answer) -> None:
        """Answers the current request. Closes the connection after it if the client asked for that."""
        request = self._current
        assert request is not None, "one answer a request"
        self._current = None
        if request.keep_alive:
            self._transport.write(
                answer.encode(b"connection: keep-alive\r\n" if request.is_http_1_0 else b"")
            )
            if not self._advancing:
                self._advance()
        else:
            self._transport.write(answer.encode(b"connection: close\r\n"))
            self._queue.clear()
            self._is_broken = True
            self._transport.close()

    def cut_off(self, answer: Answer) -> None:
        """Sends `answer` and closes the connection in an orderly way, even if fewer bytes came than were promised."""
        assert self._current is not None, "one answer a request"
        self._current.keep_alive = False
        self.reply(answer)

    def drip(self, answer: Answer, every_s: float, on_gone: Callable[[], None]) -> None:
        """Sends `answer` byte by byte, then closes. Calls `on_gone` then, or when the client disconnects."""
        assert self._current is not None, "one answer a request"
        self._current = None
        self._queue.clear()
        self._is_broken = True
        self._on_gone = on_gone
        self._drip(memoryview(answer.encode(b"connection: close\r\n")), every_s)

    def reset(self) -> None:
        """Answers the current request with a TCP reset."""
        self._current = None
        self._queue.clear()
        self._is_broken = True
        transport_socket = self._transport.get_extra_info("socket")
        transport_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def abort(self) -> None:
        """Drops the connection and all its requests."""
        self._transport.abort()

    @property
    def is_closing(self) -> bool:
        """Whether it closes by itself when its answer is sent."""
        return self._transport.is_closing()

    # Methods that asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._open_connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_connections.discard(self)
        self._queue.clear()
        self._is_broken = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._on_gone is not None:
            on_gone, self._on_gone = self._on_gone, None
            on_gone()

    def data_received(self, data: bytes) -> None:
        if self._is_broken or self._is_unreadable:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an Upgrade is ignored: the request is answered in HTTP/1.1, and later bytes are not read
        except httptools.HttpParserError:
            self._refuse_unreadable()
        self._advance()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._advance()

    # Methods that httptools calls

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _WANTED_HEADERS:
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        is_first_in_line = self._current is None and not self._queue
        if is_first_in_line and self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes <= MAX_BODY_BYTES:
            self._body.append(body)
        else:
            self._body.clear()

    def on_message_complete(self) -> None:
        parser = self._parser
        self._queue.append(
            Request(
                method=parser.get_method(),
                target=self._target,
                headers=self._headers,
                body=self._body[0] if len(self._body) == 1 else b"".join(self._body),
                keep_alive=parser.should_keep_alive(),
                is_http_1_0=parser.get_http_version() == "1.0",
                is_too_large=self._body_bytes > MAX_BODY_BYTES,
            )
        )

    def _advance(self) -> None:
        # A loop and not a recursion: the number of pipelined requests may exceed the recursion limit.
        self._advancing = True
        while self._queue and self._current is None and not self._writing_paused:
            self._current = self._queue.popleft()
            self._handle(self._current, self)
        self._advancing = False
        if self._is_broken or self._reading_paused == (len(self._queue) > _MAX_QUEUED):
            return
        self._reading_paused = not self._reading_paused
        if self._reading_paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _drip(self, rest: memoryview, every_s: float) -> None:
        if not rest:
            self._transport.close()
            return
        self._transport.write(rest[:1])
        self._timer = self._loop.call_later(every_s, self._drip, rest[1:], every_s)

    def _due(self, then: Callable[[], None]) -> None:
        self._timer = None
        self._on_gone = None
        then()

    def _refuse_unreadable(self) -> None:
        # At the end of the queue, so that earlier requests get their answers first.
        self._is_unreadable = True
        self._queue.append(Request(b"", b"", {}, b"", keep_alive=False, is_http_1_0=False))
