"""One HTTP exchange with the endpoint, with `requests`' adapter: sends a request; reads status, headers and body."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.util import Timeout

from api_client.breakage import BREAKS, describe_body_break, describe_break
from api_client.config import EndpointConfig
from api_client.connections import POOL_CLASSES, serve
from api_client.deadline import Call
from api_client.framing import FramedResponse
from api_client.streams import LONGEST_END, is_end_of_stream, is_event_stream
from api_client.surroundings import read_surroundings
from schemas.failure import Failure, FailureKind

CHUNK_BYTES = 64 * 1024
_USUAL_PORTS = {"http": 80, "https": 443}
LONGEST_ERROR_READ = CHUNK_BYTES + 4096  # the kept part of an error body, and a key that crosses its end


@dataclass(frozen=True, slots=True)
class Received:
    """An answer as it came. `broken`: why the body is not whole; None if it is. Header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    broken: Failure | None = None


class Transport:
    """A pool of connections to one endpoint. The environment (proxies, CA bundles) is read once, here.

    It does not use requests' `Session`, which adds cookies, .netrc and redirects, and reads the environment for every
    call. Raises ValueError with a sentence for an invalid URL, and for a proxy or a CA bundle that cannot be used.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        probe = requests.Request("GET", config.address.at("/")).prepare().url or ""
        self._host = host_of(probe)
        root, _, query = probe.partition("?")
        self._root, self._query = root.rstrip("/"), query and f"?{query}"
        around = read_surroundings(probe)
        self._adapter = _Adapter(probe, around.verify, around.proxies, config.pool_size)
        self._timeout = Timeout(connect=config.connect_timeout_s, read=config.read_timeout_s)

    def exchange(
        self, call: Call, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> Received | Failure:
        """The answer, or the failure if no status came. Never raises for a broken exchange."""
        request = requests.PreparedRequest()
        request.method, request.url, request.body = method, self._root + path + self._query, body
        # A plain dict is cheaper than requests' case-insensitive one. All our names are in the same case.
        request.headers = cast("CaseInsensitiveDict[str]", {"Host": self._host, **headers})
        serve(call, self._config.read_timeout_s)
        try:
            response = self._adapter.send(request, timeout=cast(Any, self._timeout))
        except BREAKS as exc:
            return describe_break(exc, call.stage, self._config)
        finally:
            serve(None, self._config.read_timeout_s)
        raw: urllib3.HTTPResponse = response.raw
        connection, raw._connection = raw._connection, None  # this code gives it back or closes it
        is_sound = False
        try:
            received = self._receive(raw)
            is_sound = received.broken is None and call.cut is None and _ends_as_json_does(received.body)
        finally:
            if connection is not None:
                self._adapter.give_back(connection, is_sound=is_sound)
        return received

    def close(self) -> None:
        """Closes the idle connections. Those in use are closed when their call ends."""
        self._adapter.close()

    def _receive(self, raw: urllib3.HTTPResponse) -> Received:
        headers = cast(FramedResponse, raw._original_response).fields
        if not 200 <= raw.status < 300:
            body, _, broken = self._read(raw, LONGEST_ERROR_READ)
            return Received(raw.status, headers, body, broken)
        most = self._config.max_response_bytes
        body, is_too_large, broken = self._read(raw, most, is_stream=is_event_stream(headers))
        if is_too_large:
            broken = Failure(FailureKind.BAD_RESPONSE, f"the body is larger than {most} bytes")
            body = body[:LONGEST_ERROR_READ]
        return Received(raw.status, headers, body, broken)

    def _read(
        self, raw: urllib3.HTTPResponse, most: int, *, is_stream: bool = False
    ) -> tuple[bytes, bool, Failure | None]:
        """At most `most` decoded bytes; whether there were more; and how the body broke, or None.

        An event stream ends with its `[DONE]`. Some servers leave the connection open after it: reading stops there,
        and the connection is closed.
        """
        chunks: list[bytes] = []
        size = 0
        tail = b""
        try:
            while chunk := raw.read1(CHUNK_BYTES, decode_content=True):
                chunks.append(chunk)
                if not size and chunk[:1] not in (b"{", b"[", b"<"):
                    is_stream = True  # it may be one: it does not begin like JSON or an HTML page
                size += len(chunk)
                if size > most:
                    raw.close()
                    return b"".join(chunks)[:most], True, None
                if is_stream:
                    tail = (tail + chunk)[-LONGEST_END:]
                    if is_end_of_stream(tail):
                        raw.close()
                        break
        except BREAKS as exc:
            raw.close()
            return b"".join(chunks), False, describe_body_break(exc, self._config)
        return b"".join(chunks), False, None


def host_of(url: str) -> str:
    """The field `Host` of requests to this URL: its port is left out where it is the usual one of the scheme."""
    parts = urlsplit(url)
    name, _, _ = (parts.hostname or "").partition(
        "%"
    )  # the zone of an IPv6 address is no concern of the server
    host = f"[{name}]" if ":" in name else name
    return host if parts.port in (None, _USUAL_PORTS.get(parts.scheme)) else f"{host}:{parts.port}"


def _ends_as_json_does(body: bytes) -> bool:
    """Whether the last byte of a body can be the end of a JSON value."""
    return body[-64:].rstrip()[-1:] in (b"}", b"]")


class _Adapter(HTTPAdapter):
    """requests' adapter for one endpoint. It computes once what requests computes for every call."""

    def __init__(self, url: str, verify: bool | str, proxies: dict[str, str], pool_size: int) -> None:
        super().__init__(pool_connections=1, pool_maxsize=pool_size)
        probe = requests.Request("GET", url).prepare()
        self._is_pool_known = False
        self._verify = verify
        self._pool: Any = super().get_connection_with_tls_context(probe, verify, proxies=proxies)
        # A forwarding proxy gets the whole URL, any other server the path.
        self._is_full_url = not super().request_url(probe, proxies).startswith("/")

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        kwargs["socket_options"] = _socket_options()
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = POOL_CLASSES

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = POOL_CLASSES
        return manager

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> Any:
        return self._pool

    def give_back(self, connection: Any, *, is_sound: bool) -> None:
        """Keeps the connection for another call; closes it if `is_sound` is False or its exchange may not be over."""
        if not is_sound:
            connection.close()
        self._pool._put_conn(connection)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        if not self._is_pool_known:
            super().cert_verify(conn, url, self._verify, cert)  # type: ignore[no-untyped-call]
            self._is_pool_known = True

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        return str(request.url) if self._is_full_url else request.path_url

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        response = requests.Response()  # cookies, encoding and other fields are not set: nothing reads them
        response.raw = resp
        return response


def _socket_options() -> list[tuple[int, int, int]]:
    """TCP_NODELAY, and keep-alive probes: routers keep a connection that waits for long, and a dead peer is noticed."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), 45))
    return options
