"""Connections that know the call that they serve, so that another thread can cut it at any moment."""

from __future__ import annotations

import errno
import http.client
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from api_client.deadline import Call, CallCut, Stage
from api_client.framing import FramedResponse
from api_client.resolver import Address, Resolver

_current = threading.local()
_resolver = Resolver()


def serve(call: Call | None, read_timeout_s: float) -> None:
    """Sets the call that this thread's connections serve from now on."""
    _current.call = call
    _current.read_timeout_s = read_timeout_s


class _Sought(NamedTuple):
    """The request that was sent, and how its answer is to be read."""

    method: str
    url: str
    preload_content: bool
    decode_content: bool
    enforce_content_length: bool


class _Watched(HTTPConnection):
    """The common part of plain and TLS connections."""

    response_class = FramedResponse  # of a proxy's answer to CONNECT
    _serves: Call | None = None
    _sought: _Sought | None = None
    _is_request_sent = False
    _answer: FramedResponse | None = None

    def _new_conn(self) -> socket.socket:
        """A connected socket. The connect timeout limits the name look-up and all addresses together."""
        call: Call = _current.call
        timeout_s = self.timeout if isinstance(self.timeout, (int, float)) else 60.0
        ends_at = time.monotonic() + timeout_s
        host = self._dns_host.strip("[]")
        call.stage = Stage.RESOLVING
        try:
            addresses = _resolver.resolve(host, self.port, timeout_s=timeout_s, call=call)
        except CallCut:
            raise
        except TimeoutError as exc:
            raise ConnectTimeoutError(self, str(exc)) from exc
        except socket.gaierror as exc:
            raise NameResolutionError(self.host, self, exc) from exc
        call.stage = Stage.CONNECTING
        return self._connect_to_one_of(addresses, ends_at, call)

    def _connect_to_one_of(self, addresses: list[Address], ends_at: float, call: Call) -> socket.socket:
        """A socket to the first address that accepts. Each address gets an equal share of the time that is left."""
        failure: OSError | None = None
        for position, (family, kind, protocol, _, address) in enumerate(addresses):
            share_s = (ends_at - time.monotonic()) / (len(addresses) - position)
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as exc:  # such as an address family that this machine does not have
                failure = failure or exc
                continue
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                call.attach(sock)
                sock.settimeout(max(share_s, 0.001))
                sock.connect(address)
                sock.settimeout(max(ends_at - time.monotonic(), 0.001))
                return sock
            except OSError as exc:
                call.detach()
                sock.close()
                if isinstance(exc, CallCut):
                    raise
                # Without IPv6, `::1` gives EADDRNOTAVAIL. The error of another address is more useful.
                if failure is None or exc.errno != errno.EADDRNOTAVAIL:
                    failure = exc
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, "no address took the connection in time") from failure
        raise NewConnectionError(self, "no address took the connection") from failure

    def request(  # type: ignore[override]  # as urllib3's own: its signature is not http.client's
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        chunked: bool = False,
        preload_content: bool = True,
        decode_content: bool = True,
        enforce_content_length: bool = True,
    ) -> None:
        """Sends head and body in one write, which saves one system call and one packet.

        The caller gives all header fields, `Host` and `Content-Length` too, and vouches that they may stand in a head.
        http.client would look at each of them again for every call: a tenth of the time that a call costs us.
        """
        call: Call = _current.call
        if self.sock is None:
            self.connect()
        call.attach(self.sock)
        self._serves = call
        call.stage = Stage.SENDING
        # Otherwise a large prompt would have to be sent within the connect timeout.
        self._set_timeout(_current.read_timeout_s)
        self._is_request_sent, self._answer = False, None
        self._sought = _Sought(method, url, preload_content, decode_content, enforce_content_length)
        fields = "".join([f"{name}: {value}\r\n" for name, value in (headers or {}).items()])
        head = f"{method} {url} HTTP/1.1\r\n{fields}\r\n".encode("latin-1")
        self.sock.sendall(head if body is None else head + body)
        self._is_request_sent = True
        call.stage = Stage.READING

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3's own
        """urllib3's response, with the head that `FramedResponse` read: both use the same end of the body."""
        sought = self._sought
        if sought is None:
            raise http.client.ResponseNotReady
        self._sought = None
        if isinstance(self.timeout, (int, float)):
            self._set_timeout(self.timeout)
        answer = FramedResponse(self.sock, method=sought.method)
        try:
            answer.begin()
        except BaseException as exc:
            answer.close()
            if isinstance(exc, ConnectionError):
                self.close()
            raise
        if answer.will_close:
            self.close()  # the answer still reads from it
        self._answer = answer
        return urllib3.HTTPResponse(
            body=answer,
            headers=answer.framing,
            status=answer.status,
            version=answer.version,
            reason=answer.reason,
            preload_content=sought.preload_content,
            decode_content=sought.decode_content,
            original_response=answer,
            enforce_content_length=sought.enforce_content_length,
            request_method=sought.method,
            request_url=sought.url,
        )

    def close(self) -> None:
        """Closes the socket, and the answer that may still hold it open."""
        super().close()
        self._sought = None
        if self._answer is not None:
            self._answer.close()

    def _set_timeout(self, timeout_s: float) -> None:
        """The timeout of each read and write. Nothing is asked of the system where it is the same."""
        self.timeout = timeout_s
        if self.sock.gettimeout() != timeout_s:
            self.sock.settimeout(timeout_s)

    @property
    def is_at_rest(self) -> bool:
        """Whether the exchange is certainly over: all was sent, all was read, and no bytes are left."""
        answer = self._answer
        return self.sock is not None and self._is_request_sent and answer is not None and answer.is_spent

    @property
    def is_connected(self) -> bool:
        """Whether it may be used again. False also if unexpected bytes came. The pool checks this before each call."""
        pending = getattr(self.sock, "pending", None)
        return super().is_connected and not (pending is not None and pending())

    def release(self) -> None:
        """Detaches the connection from its call, so that a late cut does not hit the connection's next call."""
        if self._serves is not None:
            self._serves.detach()
            self._serves = None


class WatchedHTTPConnection(_Watched):
    """A plain connection."""


class WatchedHTTPSConnection(_Watched, HTTPSConnection):
    """A TLS connection. During the handshake its socket is hidden, so a cut uses a second descriptor of it."""

    def connect(self) -> None:
        self._stand_in: socket.socket | None = None
        try:
            super().connect()
            _current.call.attach(self.sock)
        finally:
            if self._stand_in is not None:
                self._stand_in.close()

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        self._stand_in = sock.dup()
        try:
            _current.call.attach(self._stand_in)
        except CallCut:
            sock.close()
            raise
        return sock


class _Guarded(urllib3.HTTPConnectionPool):
    """The common part of both pools. They keep only connections whose exchange is certainly over."""

    def _put_conn(self, conn: Any) -> None:
        if conn is None:
            super()._put_conn(None)
            return
        # This is the only place where a connection is kept. If there is any doubt it is closed and not put back,
        # so that the next call gets an open one.
        is_at_rest = conn.is_at_rest
        conn.release()
        if is_at_rest:
            super()._put_conn(conn)
        else:
            conn.close()


class WatchedHTTPPool(_Guarded):
    """The pool of plain connections."""

    ConnectionCls = WatchedHTTPConnection


class WatchedHTTPSPool(_Guarded, urllib3.HTTPSConnectionPool):
    """The pool of TLS connections."""

    ConnectionCls = WatchedHTTPSConnection


POOL_CLASSES: dict[str, type[urllib3.HTTPConnectionPool]] = {
    "http": WatchedHTTPPool,
    "https": WatchedHTTPSPool,
}
