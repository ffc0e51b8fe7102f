"""The simulator's HTTP, spoken by hand over a socket."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from urllib.parse import urlsplit

from api_client.simulator import SimulatorConfig, SimulatorThread

BODY = b'{"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": "Hello!"}]}'


@contextmanager
def connected(simulator: SimulatorThread) -> Iterator[socket.socket]:
    address = urlsplit(simulator.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=5) as connection:
        yield connection


def chat(job: str, *headers: str, version: str = "1.1") -> bytes:
    lines = [
        f"POST /v1/chat/completions HTTP/{version}",
        "Host: simulator",
        f"X-Antrean-Job: {job}",
        *headers,
    ]
    return "\r\n".join([*lines, f"Content-Length: {len(BODY)}", "", ""]).encode()


def read_answer(connection: socket.socket) -> HTTPResponse:
    answer = HTTPResponse(connection)
    answer.begin()
    return answer


def test_pipelined_requests_are_answered_one_at_a_time_and_in_order() -> None:
    wanted = 3000  # More than the stack is deep.
    with SimulatorThread() as simulator, connected(simulator) as connection:
        models, wrong = b"GET /models HTTP/1.1\r\n\r\n", b"GET /nothing HTTP/1.1\r\nConnection: close\r\n\r\n"
        connection.sendall(chat("a") + BODY + models * wanted + wrong)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    statuses = re.findall(rb"HTTP/1\.1 (\d{3})", received)
    assert statuses == [b"200"] * (wanted + 1) + [b"404"]
    assert received.index(b"chat.completion") < received.index(b'{"data":')


def test_a_pipelined_call_begins_after_the_call_before_it_was_answered() -> None:
    with SimulatorThread(SimulatorConfig(latency_s=0.02)) as simulator, connected(simulator) as connection:
        connection.sendall((chat("a") + BODY) * 3)
        stats = simulator.wait_for(lambda stats: stats["paid"] == 3)
        assert stats["max_in_flight"] == 1


def test_expect_continue_is_answered_before_the_body_is_sent() -> None:
    with SimulatorThread() as simulator, connected(simulator) as connection:
        connection.sendall(chat("a", "Expect: 100-continue"))
        assert connection.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert read_answer(connection).status == 200


def test_http_1_0_is_closed_after_the_answer_unless_it_asks_to_stay() -> None:
    with SimulatorThread() as simulator:
        with connected(simulator) as connection:
            connection.sendall(chat("a", version="1.0") + BODY)
            answer = read_answer(connection)
            assert (answer.status, answer.getheader("connection")) == (200, "close")
            answer.read()
            assert connection.recv(1) == b""
        with connected(simulator) as connection:
            for _ in range(2):
                connection.sendall(chat("a", "Connection: keep-alive", version="1.0") + BODY)
                answer = read_answer(connection)
                assert (answer.status, answer.getheader("connection")) == (200, "keep-alive")
                answer.read()


def test_a_body_in_drips_and_chunks_is_read_whole() -> None:
    with SimulatorThread() as simulator, connected(simulator) as connection:
        head = b"POST /chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:10], BODY[10:])]
        for byte in head + b"".join(chunks) + b"0\r\n\r\n":
            connection.sendall(bytes([byte]))
        assert json.loads(read_answer(connection).read())["object"] == "chat.completion"


def test_what_is_not_http_gets_a_400_and_is_closed() -> None:
    with SimulatorThread() as simulator, connected(simulator) as connection:
        connection.sendall(b"hello there\r\n\r\n")
        answer = read_answer(connection)
        assert answer.status == 400
        assert json.loads(answer.read())["message"] == "the request is not readable as HTTP"
        assert connection.recv(1) == b""
