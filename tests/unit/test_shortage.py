"""What this machine lacks is told from what the endpoint does."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import urllib3.exceptions

from api_client.breakage import describe_break
from api_client.client import EndpointClient
from api_client.config import Credential, EndpointConfig
from api_client.deadline import Stage
from api_client.errors import ApiError
from schemas.failure import FailureKind
from schemas.shortage import is_local_shortage
from worker.operations.capacity import count_startable_threads

CONFIG = EndpointConfig("http://endpoint.test")
LACKS = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL]


def as_raised(number: int) -> Exception:
    """An error of the system, as urllib3 and requests wrap it."""
    cause = OSError(number, "words")
    wrapped = urllib3.exceptions.NewConnectionError(None, f"Failed to establish a new connection: {cause}")  # type: ignore[arg-type]
    wrapped.__cause__ = cause
    return requests.ConnectionError(wrapped)


@pytest.mark.parametrize("number", LACKS)
@pytest.mark.parametrize("stage", [Stage.RESOLVING, Stage.CONNECTING])
def test_a_call_that_this_machine_had_nothing_for_is_a_local_failure(number: int, stage: Stage) -> None:
    failure = describe_break(as_raised(number), stage, CONFIG)
    assert (failure.kind, failure.is_local, failure.was_sent) == (FailureKind.UNREACHABLE, True, False)
    assert "this machine" in failure.message


@pytest.mark.parametrize(
    "number", [errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT]
)
def test_an_endpoint_that_is_not_there_is_no_local_failure(number: int) -> None:
    assert not describe_break(as_raised(number), Stage.CONNECTING, CONFIG).is_local


@pytest.mark.parametrize("number", LACKS)
def test_what_breaks_after_the_request_left_may_be_paid_for_and_is_no_local_failure(number: int) -> None:
    failure = describe_break(as_raised(number), Stage.READING, CONFIG)
    assert (failure.is_local, failure.was_sent) == (False, True)


def test_a_call_that_no_thread_can_watch_is_a_local_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "antrean-deadlines":
            raise RuntimeError("can't start new thread")
        real(thread)

    with socket.create_server(("127.0.0.1", 0)) as server:
        client = EndpointClient(EndpointConfig(f"http://127.0.0.1:{server.getsockname()[1]}"))
        monkeypatch.setattr(threading.Thread, "start", start)
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                client.complete(b"{}", credential=Credential(None))
            assert (caught.value.failure.is_local, caught.value.failure.was_sent) == (True, False)
        assert client.calls_in_flight == 0
        client.close()


def test_threads_are_counted_by_trying() -> None:
    before = threading.active_count()
    assert count_startable_threads(40) == 40
    assert threading.active_count() == before


def test_a_process_that_may_have_few_threads_counts_few() -> None:
    script = (
        "import resource, threading\n"
        "from worker.operations.capacity import count_startable_threads\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "most = pages * resource.getpagesize() + (400 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "print(count_startable_threads(500), threading.active_count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    counted, left = map(int, done.stdout.split())
    assert 1 <= counted < 60
    assert left == 1


def test_what_a_pool_has_no_new_thread_for_waits_in_it_for_one_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The consumer relies on it: such a message is neither lost nor to be put back."""
    begun, go = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: (begun.set(), go.wait(10)))
        assert begun.wait(10)
        with monkeypatch.context() as patched:

            def start(_: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patched.setattr(threading.Thread, "start", start)
            done: list[int] = []
            with pytest.raises(RuntimeError) as caught:
                pool.submit(done.append, 1)
            assert is_local_shortage(caught.value)
        go.set()
        first.result(10)
    assert done == [1]


def test_a_machine_without_one_family_of_addresses_is_not_short_of_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`localhost` has two addresses; where IPv6 is switched off, `::1` cannot be had, and says nothing."""

    class WithoutIpv6(socket.socket):
        def connect(self, address: Any) -> None:
            if self.family is socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            super().connect(address)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free from here on: nobody listens
    stream = socket.SOCK_STREAM
    both = [
        (socket.AF_INET, stream, 6, "", ("127.0.0.1", port)),
        (socket.AF_INET6, stream, 6, "", ("::1", port, 0, 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: both)
    monkeypatch.setattr(socket, "socket", WithoutIpv6)
    client = EndpointClient(EndpointConfig(f"http://localhost:{port}"))
    with pytest.raises(ApiError) as caught:
        client.complete(b"{}", credential=Credential(None))
    assert (caught.value.failure.is_local, caught.value.failure.kind) == (False, FailureKind.UNREACHABLE)
    assert "refused" in caught.value.failure.message
    client.close()
