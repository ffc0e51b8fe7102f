"""A real server that can say anything, say it slowly, or hang up. What the contract tests share."""

from __future__ import annotations

import json
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest

from api_client.client import EndpointClient
from api_client.config import Credential, EndpointConfig, HeaderStyle
from api_client.errors import ApiError
from schemas.failure import Failure

KEY = "sk-very-secret-key"
BEARER = Credential(KEY, HeaderStyle.BEARER)
BODY = b'{"model":"m","messages":[{"role":"user","content":"my secret prompt"}]}'
COMPLETION = json.dumps(
    {
        "id": "resp-1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
).encode()

Say = Callable[[socket.socket], None]


def reply(body: bytes = COMPLETION, status: int = 200, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Server:
    """Reads whole requests and answers each with `say`; after a `say` that returns it reads the next."""

    def __init__(self, say: bytes | Say) -> None:
        self.say: Say = say if callable(say) else lambda conn: conn.sendall(say)
        self.requests: list[bytes] = []
        self.accepted = 0
        self.has_request = threading.Event()
        self.over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            # What is said leaves at once: else a second answer waits for the client to have acknowledged the first.
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with conn:
            try:
                while request := self._read(conn):
                    self.requests.append(request)
                    self.has_request.set()
                    self.say(conn)
            except OSError:
                return

    @staticmethod
    def _read(conn: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += (more := conn.recv(65536))
            if not more:
                return b""
        head, _, body = data.partition(b"\r\n\r\n")
        length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x[:15] == b"content-length:"), 0)
        while len(body) < length:
            body += conn.recv(65536)
        return head + b"\r\n\r\n" + body

    def hang(self, conn: socket.socket) -> None:
        self.over.wait(30)

    def drip(self, first: bytes) -> Say:
        def say(conn: socket.socket) -> None:
            conn.sendall(first)
            while not self.over.wait(0.02):
                conn.sendall(b"x")

        return say

    def close(self) -> None:
        self.over.set()
        self._listener.close()


Serve = Callable[..., tuple[Server, EndpointClient]]


def serving() -> Iterator[Serve]:
    """Opens servers with a client each, and closes them all: each test module makes its fixture of it."""
    opened: list[Server | EndpointClient] = []

    def open_both(say: bytes | Say = b"", path: str = "", **limits: float) -> tuple[Server, EndpointClient]:
        server = Server(say)
        base_url = f"http://127.0.0.1:{server.port}{path}"
        client = EndpointClient(EndpointConfig(base_url, **limits))  # type: ignore[arg-type]
        opened.extend([server, client])
        return server, client

    yield open_both
    for one in opened:
        one.close()


def failure_of(client: EndpointClient, credential: Credential = BEARER) -> Failure:
    with pytest.raises(ApiError) as caught:
        client.complete(BODY, credential=credential)
    assert client.calls_in_flight == 0
    told = (
        "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caught.value.failure.message
    )
    assert KEY not in told and "secret prompt" not in told
    return caught.value.failure


def then(*says: bytes | Say) -> Say:
    """Says one after the other."""

    def say(conn: socket.socket) -> None:
        for one in says:
            if callable(one):
                one(conn)
            else:
                conn.sendall(one)

    return say


def close_now(conn: socket.socket) -> None:
    conn.shutdown(socket.SHUT_RDWR)


def reset_now(conn: socket.socket) -> None:
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.close()
