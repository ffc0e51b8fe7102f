"""Turns an exception of the HTTP layers into a `Failure`. Pure."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace

import requests
import urllib3.exceptions as urllib3_errors

from api_client.config import EndpointConfig
from api_client.deadline import Cut, Stage
from schemas.failure import Failure, FailureKind
from schemas.shortage import describe_shortage, is_local_shortage

# All exceptions that requests, urllib3 and the standard library raise for a broken exchange.
BREAKS = (
    requests.RequestException,
    urllib3_errors.HTTPError,
    http.client.HTTPException,
    OSError,
    UnicodeError,
)


def describe_break(exc: BaseException, stage: Stage, config: EndpointConfig) -> Failure:
    """The failure for an exception at this stage. Quotes nothing that was sent or received."""
    was_sent = stage not in (Stage.RESOLVING, Stage.CONNECTING)
    if not was_sent:
        for cause in _causes(exc):
            if is_local_shortage(cause):
                return describe_lack(cause, config)
    return replace(_describe(exc, stage, config), was_sent=was_sent)


def describe_lack(exc: BaseException, config: EndpointConfig) -> Failure:
    """The failure for a call that this machine could not make, as it lacks a resource. Nothing was sent."""
    words = f"no call to {config.host_and_port}: {describe_shortage(exc)}"
    return Failure(FailureKind.UNREACHABLE, words, was_sent=False, is_local=True)


def _describe(exc: BaseException, stage: Stage, config: EndpointConfig) -> Failure:
    causes = list(_causes(exc))
    where = config.host_and_port
    if any(_is_timeout(cause) for cause in causes):
        return Failure(FailureKind.TIMEOUT, _which_timeout(stage, config))
    for cause in causes:
        if isinstance(cause, (requests.exceptions.ProxyError, urllib3_errors.ProxyError)):
            return _unreachable(f"the proxy on the way to {where} did not let the call through")
    for cause in causes:
        words = _words_for(cause, where)
        if words is not None:
            return _unreachable(words)
    return _unreachable(f"the exchange with {where} broke: {type(exc).__name__}")


def describe_body_break(exc: BaseException, config: EndpointConfig) -> Failure:
    """The failure for an exception while a body was read.

    A body that ended too early is a bad response; a broken connection is unreachable; no byte in time is a timeout.
    """
    causes = list(_causes(exc))
    if any(isinstance(cause, urllib3_errors.DecodeError) for cause in causes):
        return Failure(FailureKind.BAD_RESPONSE, "the body does not decode as its content-encoding says")
    is_ended_early = any(
        isinstance(cause, (http.client.IncompleteRead, urllib3_errors.IncompleteRead)) for cause in causes
    )
    if is_ended_early and not any(isinstance(cause, OSError) for cause in causes[1:]):
        return Failure(FailureKind.BAD_RESPONSE, "the body ended before its time")
    return describe_break(exc, Stage.READING, config)


def describe_cut(cut: Cut, config: EndpointConfig) -> Failure:
    """The failure for a call that the client cut itself."""
    if cut is Cut.DEADLINE:
        words = f"the call took longer than its deadline of {config.deadline_s:g} s"
        return Failure(FailureKind.TIMEOUT, words)
    return Failure(FailureKind.INTERRUPTED, "the call was interrupted by a shutdown")


def _is_timeout(cause: BaseException) -> bool:
    # In urllib3, "refused" and "name not found" are subclasses of the connect timeout.
    if isinstance(cause, urllib3_errors.NewConnectionError):
        return False
    return isinstance(cause, (TimeoutError, requests.Timeout, urllib3_errors.TimeoutError))


def _unreachable(message: str) -> Failure:
    return Failure(FailureKind.UNREACHABLE, message)


def _which_timeout(stage: Stage, config: EndpointConfig) -> str:
    where = config.host_and_port
    if stage is Stage.RESOLVING:
        return f"the name in {where} was not resolved within {config.connect_timeout_s:g} s"
    if stage is Stage.CONNECTING:
        return f"no connection to {where} within {config.connect_timeout_s:g} s"
    if stage is Stage.SENDING:
        return f"{where} did not take the request within {config.read_timeout_s:g} s"
    return f"no byte from {where} for {config.read_timeout_s:g} s"


def _words_for(cause: BaseException, where: str) -> str | None:
    if isinstance(cause, socket.gaierror):
        host = where.rpartition(":")[0]
        is_passing = cause.errno == socket.EAI_AGAIN
        return f"name not found: {host}" + (" (the name server did not answer)" if is_passing else "")
    if isinstance(cause, (UnicodeError, urllib3_errors.LocationValueError)):
        return f"name not found: {where.rpartition(':')[0]} (it cannot be a host's name)"
    if isinstance(cause, ssl.SSLError):
        return _tls_words(cause, where)
    if isinstance(cause, ConnectionRefusedError):
        return f"connection refused by {where}"
    if isinstance(cause, http.client.RemoteDisconnected):
        return f"{where} closed the connection without an answer"
    if isinstance(cause, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)):
        return f"connection reset by {where}"
    if isinstance(cause, http.client.HTTPException):
        return f"{where} did not answer in HTTP ({type(cause).__name__})"
    if isinstance(cause, OSError) and cause.errno is not None:
        return f"{cause.strerror or type(cause).__name__}: {where}"
    return None


def _tls_words(cause: ssl.SSLError, where: str) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"TLS: the certificate of {where} is not trusted: {cause.verify_message}"
    if cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"):
        return f"TLS: {where} does not speak TLS ({cause.reason}): is its base URL http://?"
    return f"TLS: {cause.reason or 'the connection broke'} ({where})"


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """The exception and all its causes, outermost first, each once."""
    seen: set[int] = set()
    todo: list[object] = [exc]
    while todo:
        cause = todo.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        todo += [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]
