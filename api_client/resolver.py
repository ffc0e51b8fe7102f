"""Looks up the addresses of a host with a time limit, which the system's own look-up does not have."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from api_client.deadline import Call, CallCut

Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
Lookup = Callable[[str, int], list[Address]]


def system_lookup(host: str, port: int) -> list[Address]:
    """The system's addresses for streams to `host`, in its order. Raises socket.gaierror or UnicodeError."""
    return list(socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM))


class Resolver:
    """Looks names up in threads. Calls that wait for the same name share one look-up."""

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
        self._lock = threading.Lock()
        self._under_way: dict[tuple[int, str, int], Future[list[Address]]] = {}

    def resolve(self, host: str, port: int, *, timeout_s: float, call: Call) -> list[Address]:
        """The host's addresses, in the system's order, at least one.

        Raises TimeoutError after `timeout_s`; CallCut if the call is cut meanwhile; socket.gaierror if the name is not
        found; UnicodeError if it cannot be a host name; RuntimeError if no thread can be started.
        """
        if _is_address(host):
            return self._lookup(host, port)
        done = threading.Event()
        call.wake_on_cut(done.set)
        answer = self._begin(host, port)
        answer.add_done_callback(lambda _: done.set())
        if not done.wait(timeout_s):
            raise TimeoutError(f"{host} was not resolved in time")
        if call.cut is not None:
            raise CallCut(call.cut)
        return answer.result()

    def _begin(self, host: str, port: int) -> Future[list[Address]]:
        key = (os.getpid(), host, port)  # a forked child must not wait for its parent's look-up
        with self._lock:
            answer = self._under_way.get(key)
            if answer is not None:
                return answer
            answer = self._under_way[key] = Future()
        try:
            threading.Thread(target=self._run, args=(key, answer), name="antrean-dns", daemon=True).start()
        except RuntimeError as exc:
            # This look-up was not started: later calls must not wait for it.
            self._forget(key)
            answer.set_exception(exc)
            raise
        return answer

    def _run(self, key: tuple[int, str, int], answer: Future[list[Address]]) -> None:
        _, host, port = key
        try:
            addresses = self._lookup(host, port)
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "no addresses")
        except BaseException as exc:
            # All calls that wait get the error; the next call begins a new look-up.
            self._forget(key)
            answer.set_exception(exc)
        else:
            self._forget(key)
            answer.set_result(addresses)

    def _forget(self, key: tuple[int, str, int]) -> None:
        with self._lock:
            self._under_way.pop(key, None)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
