"""Answers that are too large, too slow, cut off or never come, from a real server."""

from __future__ import annotations

import gzip
import socket
import threading
import time

import pytest

from api_client.client import EndpointClient
from api_client.config import Credential, EndpointConfig
from api_client.errors import ApiError, Interrupted, RateLimited
from schemas.failure import Failure, FailureKind
from tests.contract.test_api_client_server import (
    BEARER,
    BODY,
    COMPLETION,
    Say,
    Serve,
    close_now,
    failure_of,
    reply,
    reset_now,
    serving,
    then,
)

serve = pytest.fixture(serving, name="serve")


@pytest.mark.parametrize("length", [None, 5000])
def test_a_body_that_is_too_large_is_not_read_to_its_end(serve: Serve, length: int | None) -> None:
    server, client = serve(max_response_bytes=1000)
    head = "HTTP/1.1 200 OK\r\n" + (f"Content-Length: {length}\r\n" if length else "") + "\r\n"
    server.say = server.drip(head.encode() + b"x" * 1001)
    failure = failure_of(client)
    assert failure.kind is FailureKind.BAD_RESPONSE and "larger than 1000 bytes" in failure.message


def test_a_gzip_bomb_is_cut_by_its_decoded_size(serve: Serve) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    _, client = serve(reply(bomb, 200, "Content-Encoding: gzip"), max_response_bytes=100_000)
    assert "larger than 100000 bytes" in failure_of(client).message


def test_a_body_that_is_no_gzip_is_a_bad_response(serve: Serve) -> None:
    _, client = serve(reply(b"not gzip", 200, "Content-Encoding: gzip"))
    assert failure_of(client).kind is FailureKind.BAD_RESPONSE


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nX-Drip: ", reply(b"{", length=10**6), b""])
def test_a_drip_of_bytes_ends_at_the_deadline(serve: Serve, first: bytes) -> None:
    server, client = serve(deadline_s=0.3, read_timeout_s=20)
    server.say = server.drip(first)
    with pytest.raises(ApiError) as caught:
        client.complete(BODY, credential=BEARER)
    failure = caught.value.failure
    assert failure.kind is FailureKind.TIMEOUT and "deadline of 0.3 s" in failure.message
    assert 0.3 <= caught.value.latency_s < 5


def test_a_cut_connection_is_not_used_again(serve: Serve) -> None:
    server, client = serve(deadline_s=1.0)  # enough for the second call on a busy machine
    server.say = server.hang
    failure_of(client)
    server.say = lambda conn: conn.sendall(reply())
    client.complete(BODY, credential=BEARER)
    assert server.accepted == 2


def test_silence_is_a_read_timeout(serve: Serve) -> None:
    server, client = serve(read_timeout_s=0.1)
    server.say = server.hang
    failure = failure_of(client)
    assert failure.kind is FailureKind.TIMEOUT and "no byte from 127.0.0.1" in failure.message


def test_a_connection_that_nobody_takes_is_a_connect_timeout() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):  # fills the queue of one
            config = EndpointConfig(f"http://127.0.0.1:{full.getsockname()[1]}", connect_timeout_s=0.2)
            failure = failure_of(EndpointClient(config))
    assert failure.kind is FailureKind.TIMEOUT and "no connection to 127.0.0.1" in failure.message


@pytest.mark.parametrize(
    ("say", "words"), [(reset_now, "connection reset by 127."), (close_now, "closed the connection without")]
)
def test_a_connection_that_breaks_before_an_answer_is_unreachable(serve: Serve, say: Say, words: str) -> None:
    server, client = serve(say)
    failure = failure_of(client)
    assert failure.kind is FailureKind.UNREACHABLE and words in failure.message
    assert len(server.requests) == 1


def test_a_reset_in_mid_body_is_unreachable_and_knows_its_status(serve: Serve) -> None:
    server, client = serve()

    def say(conn: socket.socket) -> None:
        conn.sendall(reply(COMPLETION[:20], 200, "X-Request-Id: r-3", length=500))
        time.sleep(1)  # what is unread at a reset is gone, and nothing tells that it was read
        reset_now(conn)

    server.say = say
    failure = failure_of(client)
    assert (failure.kind, failure.http_status) == (FailureKind.UNREACHABLE, 200)
    assert failure.request_id == "r-3"


@pytest.mark.parametrize(
    "said",
    [
        reply(COMPLETION[:20], length=500),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n" + COMPLETION[:20],
        b"HTTP/1.1 200 OK\r\n\r\n" + COMPLETION[:20],
    ],
)
def test_a_body_that_ends_before_its_time_is_a_bad_response(serve: Serve, said: bytes) -> None:
    _, client = serve(then(said, close_now))
    assert failure_of(client).kind is FailureKind.BAD_RESPONSE


def test_a_whole_completion_is_kept_however_its_transport_ended(serve: Serve) -> None:
    _, client = serve(then(reply(length=5000), close_now))
    assert client.complete(BODY, credential=BEARER).raw == COMPLETION


def test_an_error_status_counts_although_its_body_breaks(serve: Serve) -> None:
    _, client = serve(then(reply(b"{", 429, length=99), close_now))
    with pytest.raises(RateLimited):
        client.complete(BODY, credential=BEARER)


def test_a_refused_connection_names_host_and_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    failure = failure_of(EndpointClient(EndpointConfig(f"http://127.0.0.1:{port}")))
    assert failure == Failure(
        FailureKind.UNREACHABLE, f"connection refused by 127.0.0.1:{port}", was_sent=False
    )


def test_a_name_that_does_not_exist_is_named() -> None:
    failure = failure_of(EndpointClient(EndpointConfig("http://nowhere.invalid", deadline_s=20)))
    assert failure.kind is FailureKind.UNREACHABLE
    assert failure.message.startswith("name not found: nowhere.invalid")


def test_tls_to_a_plain_port_says_so() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        conn, _ = listener.accept()
        with conn:
            conn.recv(65536)
            conn.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=answer, daemon=True).start()
    with listener:
        client = EndpointClient(EndpointConfig(f"https://127.0.0.1:{listener.getsockname()[1]}"))
        failure = failure_of(client)
    assert failure.kind is FailureKind.UNREACHABLE and failure.message.startswith("TLS: ")
    assert "does not speak TLS" in failure.message


def test_a_tls_handshake_that_hangs_ends_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        failure = failure_of(EndpointClient(EndpointConfig(url, deadline_s=0.3)))
    assert failure.kind is FailureKind.TIMEOUT and "deadline" in failure.message


def test_cutting_all_calls_ends_a_hanging_call_and_refuses_the_next(serve: Serve) -> None:
    server, client = serve()
    server.say = server.hang
    raised: list[ApiError] = []

    def call() -> None:
        with pytest.raises(Interrupted) as caught:
            client.complete(BODY, credential=BEARER)
        raised.append(caught.value)

    thread = threading.Thread(target=call)
    thread.start()
    assert server.has_request.wait(5) and client.calls_in_flight == 1
    assert client.cut_all_calls() == 1
    thread.join(5)
    assert [error.failure.kind for error in raised] == [FailureKind.INTERRUPTED]
    assert client.calls_in_flight == 0 and client.cut_all_calls() == 0
    assert failure_of(client).kind is FailureKind.INTERRUPTED
    assert len(server.requests) == 1


def test_a_key_that_no_header_can_carry_is_not_sent(serve: Serve) -> None:
    server, client = serve(reply())
    assert failure_of(client, Credential("sk-\u201cquoted\u201d")).kind is FailureKind.UNAUTHORIZED
    assert server.requests == []


def test_an_answer_that_is_not_http_is_unreachable(serve: Serve) -> None:
    _, client = serve(b"SSH-2.0-OpenSSH\r\n\r\n")
    failure = failure_of(client)
    assert failure.kind is FailureKind.UNREACHABLE and "did not answer in HTTP" in failure.message
