"""One attempt against a real server: what is sent, what comes back, what is kept."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from api_client.config import Credential, HeaderStyle
from api_client.transport import host_of
from schemas.chat import parse_request
from schemas.failure import FailureKind
from schemas.rates import Allowance, RateHints
from tests.contract.test_api_client_server import (
    BEARER,
    BODY,
    COMPLETION,
    KEY,
    Serve,
    failure_of,
    reply,
    serving,
)

serve = pytest.fixture(serving, name="serve")


def test_a_completion_comes_back_with_its_facts(serve: Serve) -> None:
    _, client = serve(reply(COMPLETION, 200, "X-Request-Id: r-1", "X-RateLimit-Remaining-Requests: 7"))
    answer = client.complete(BODY, credential=BEARER)
    assert answer.completion.choices[0].message.content == "hi"
    assert (answer.raw, answer.http_status, answer.request_id) == (COMPLETION, 200, "r-1")
    assert answer.rate_hints == RateHints(requests=Allowance(remaining=7))
    assert 0 < answer.latency_s < 5


def test_the_request_carries_the_body_the_key_and_the_job(serve: Serve) -> None:
    server, client = serve(reply())
    client.complete(BODY, credential=BEARER, job_id="job-1")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n") and body == BODY
    assert f"Authorization: Bearer {KEY}".encode() in head and b"X-Antrean-Job: job-1" in head
    assert b"api-key" not in head.lower() and b"Content-Type: application/json" in head


def test_a_request_s_head_is_whole_and_no_field_is_sent_twice(serve: Serve) -> None:
    server, client = serve(reply())
    client.complete(BODY, credential=BEARER, job_id="job-1")
    head, _, _ = server.requests[0].partition(b"\r\n\r\n")
    assert dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:]) == {
        "Host": f"127.0.0.1:{server.port}",
        "Accept": "application/json",
        "Accept-Encoding": "gzip, deflate",
        "Content-Type": "application/json",
        "User-Agent": "antrean",
        "Authorization": f"Bearer {KEY}",
        "X-Antrean-Job": "job-1",
        "Content-Length": str(len(BODY)),
    }
    assert head.count(b"\r\n") == 8


@pytest.mark.parametrize(
    "url",
    [
        "http://endpoint.test/v1/models",
        "http://endpoint.test:80/v1/models",
        "https://endpoint.test:443/v1/models",
        "https://Endpoint.test:8443/v1/models?api-version=1",
        "http://endpoint.test:443/v1",
        "http://127.0.0.1:8000/v1",
        "http://[::1]:8000/v1",
        "https://[2001:db8::1]/v1",
        "http://b\u00fccher.test:8080/v1",
    ],
)
def test_the_host_that_is_sent_is_that_of_http_client(url: str) -> None:
    prepared = requests.Request("GET", url).prepare().url
    assert prepared is not None
    sent: list[bytes] = []
    parts = urlsplit(prepared)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc)
    connection.send = sent.append  # type: ignore[assignment, method-assign]
    connection.request("GET", parts.path)
    assert f"\r\nHost: {host_of(prepared)}\r\n".encode() in sent[0]


def test_the_api_key_style_sends_that_header_alone(serve: Serve) -> None:
    server, client = serve(reply())
    client.complete(BODY, credential=Credential(f" {KEY}\n", HeaderStyle.API_KEY))
    assert f"api-key: {KEY}\r\n".encode() in server.requests[0]
    assert b"authorization" not in server.requests[0].lower()


def test_no_key_sends_no_header_and_netrc_is_not_looked_at(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login someone password netrc-password\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server, client = serve(reply(COMPLETION, 200, "Set-Cookie: a=b"))
    for credential in (Credential(None, HeaderStyle.BEARER), BEARER):
        client.complete(BODY, credential=credential)
    assert b"authorization" not in server.requests[0].lower()
    assert f"Authorization: Bearer {KEY}".encode() in server.requests[1]
    assert b"cookie" not in server.requests[1].lower()


def test_a_chat_request_is_sent_as_it_was_given(serve: Serve) -> None:
    server, client = serve(reply())
    client.complete(parse_request(json.loads(BODY)), credential=BEARER)
    assert json.loads(server.requests[0].partition(b"\r\n\r\n")[2]) == json.loads(BODY)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_a_base_url_means_the_same_with_or_without_v1_and_slash(serve: Serve, path: str) -> None:
    server, client = serve(reply(b'{"data": [{"id": "b"}, {"id": "a"}, {}]}'), path)
    assert client.models(credential=BEARER) == ["b", "a"]
    assert server.requests[0].startswith(b"GET /v1/models HTTP/1.1\r\n")


def test_calls_reuse_one_connection(serve: Serve) -> None:
    server, client = serve(reply())
    for _ in range(5):
        client.complete(BODY, credential=BEARER)
    assert (server.accepted, len(server.requests)) == (1, 5)


def test_threads_share_the_pool(serve: Serve) -> None:
    server, client = serve(reply(), pool_size=4)
    threads = [
        threading.Thread(target=lambda: [client.complete(BODY, credential=BEARER) for _ in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 80 and server.accepted <= 4


def test_a_connection_closed_while_idle_is_replaced(serve: Serve) -> None:
    server, client = serve(reply(COMPLETION, 200, "Connection: close"))
    for _ in range(2):
        client.complete(BODY, credential=BEARER)
    assert server.accepted == 2


def test_gzip_is_decoded(serve: Serve) -> None:
    _, client = serve(reply(gzip.compress(COMPLETION), 200, "Content-Encoding: gzip"))
    assert client.complete(BODY, credential=BEARER).raw == COMPLETION


def test_a_chunked_body_is_read_and_its_connection_reused(serve: Serve) -> None:
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(COMPLETION), COMPLETION)
    server, client = serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
    for _ in range(2):
        assert client.complete(BODY, credential=BEARER).raw == COMPLETION
    assert server.accepted == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, FailureKind.REJECTED),
        (401, FailureKind.UNAUTHORIZED),
        (402, FailureKind.RATE_LIMITED),  # as it tells a wait
        (403, FailureKind.REJECTED),
        (404, FailureKind.REJECTED),
        (408, FailureKind.SERVER_ERROR),
        (409, FailureKind.SERVER_ERROR),
        (422, FailureKind.REJECTED),
        (425, FailureKind.RATE_LIMITED),
        (429, FailureKind.RATE_LIMITED),
        (500, FailureKind.SERVER_ERROR),
        (503, FailureKind.SERVER_ERROR),
    ],
)
def test_each_status_has_its_kind_and_the_endpoints_words(
    serve: Serve, status: int, kind: FailureKind
) -> None:
    body = b'{"message": "no, %s", "request_id": "r-9"}' % KEY.encode()
    server, client = serve(reply(body, status, "Retry-After: 2", "X-Should-Retry: true"))
    failure = failure_of(client)
    assert (failure.kind, failure.http_status, failure.request_id) == (kind, status, "r-9")
    assert (failure.message, failure.retry_after_s, failure.should_retry) == ("no, ***", 2.0, True)
    assert failure.body is not None and KEY.encode() not in failure.body
    assert len(server.requests) == 1


def test_a_redirect_is_not_followed(serve: Serve) -> None:
    server, client = serve(reply(b"", 307, "Location: https://elsewhere.example/v1?token=abc"))
    failure = failure_of(client)
    assert failure.kind is FailureKind.REJECTED and failure.http_status == 307
    assert "elsewhere.example" in failure.message and "abc" not in failure.message
    assert len(server.requests) == 1
