"""The client over TLS, against a server with a certificate made for the test."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_client.client import EndpointClient
from api_client.config import EndpointConfig
from schemas.failure import FailureKind
from tests.contract.test_api_client_server import BEARER, BODY, COMPLETION, Server, failure_of, reply, then

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")


class TlsServer(Server):
    """The raw server behind TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        super().__init__(reply())

    def _serve(self, conn: socket.socket) -> None:
        try:
            super()._serve(self.context.wrap_socket(conn, server_side=True))
        except OSError:
            conn.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a key and a certificate of its own signature for 127.0.0.1."""
    made = tmp_path / "both.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command = ["openssl", *words.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(made), "-out", f"{made}.crt"], check=True, capture_output=True)
    made.write_bytes(made.read_bytes() + Path(f"{made}.crt").read_bytes())
    return made


@pytest.fixture
def server(certificate: Path) -> Iterator[TlsServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = TlsServer(context)
    yield server
    server.close()


def client_of(server: Server, *, deadline_s: float = 20.0) -> EndpointClient:
    return EndpointClient(EndpointConfig(f"https://127.0.0.1:{server.port}", deadline_s=deadline_s))


def test_a_trusted_certificate_is_called_over_one_connection(
    server: TlsServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    client = client_of(server)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")  # the environment counts when the client is made
    for _ in range(3):
        assert client.complete(BODY, credential=BEARER).raw == COMPLETION
    assert server.accepted == 1
    client.close()


@pytest.mark.parametrize("is_in_one_record", [True, False])
def test_a_second_answer_in_tls_reaches_nobody(
    server: TlsServer, certificate: Path, monkeypatch: pytest.MonkeyPatch, is_in_one_record: bool
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    stale = reply(COMPLETION.replace(b"resp-1", b"stale!"))
    said = threading.Event()
    first = [reply() + stale] if is_in_one_record else [reply(), stale]
    server.say = then(*first, lambda _: said.set())
    client = client_of(server)
    assert client.complete(BODY, credential=BEARER).completion.id == "resp-1"
    assert said.wait(5)
    server.say = then(reply(COMPLETION.replace(b"resp-1", b"resp-2")))
    assert client.complete(BODY, credential=BEARER).completion.id == "resp-2"
    assert server.accepted == 2
    client.close()


def test_an_untrusted_certificate_is_unreachable_and_sends_nothing(server: TlsServer) -> None:
    failure = failure_of(client_of(server))
    assert failure.kind is FailureKind.UNREACHABLE
    assert failure.message.startswith("TLS: the certificate of 127.0.0.1:")
    assert server.requests == []


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nX-Drip: "])
def test_a_deadline_ends_a_tls_call_that_hangs_or_drips(
    server: TlsServer, certificate: Path, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    server.say = server.drip(first) if first else server.hang
    assert failure_of(client_of(server, deadline_s=0.3)).kind is FailureKind.TIMEOUT


def test_cutting_all_calls_ends_a_tls_call(
    server: TlsServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    server.say = server.hang
    client = client_of(server)
    kinds: list[FailureKind] = []
    thread = threading.Thread(target=lambda: kinds.append(failure_of(client).kind))
    thread.start()
    assert server.has_request.wait(5) and client.cut_all_calls() == 1
    thread.join(5)
    assert kinds == [FailureKind.INTERRUPTED]
