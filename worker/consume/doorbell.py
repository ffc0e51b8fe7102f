"""Notices of the broker that a list may have changed. With them an idle worker asks once a second only.

The server sends them on a connection of their own: `CLIENT TRACKING` with `BCAST`, from Redis 6.0 on and in every
Valkey. The content of a notice is not read; the Fetcher asks the broker. A lost notice costs a second at most,
because the Fetcher asks once a second anyway.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any

import redis
import structlog

from worker.broker.refusals import name_refusal

log = structlog.get_logger(__name__)

_PONG = b"+PONG\r\n"
_READ_BYTES = 65_536


class Doorbell:
    """The connection for notices of one process. For the thread of Celery's loop alone; no method raises."""

    def __init__(self, client: redis.Redis, ring: Callable[[], None]) -> None:
        """Connects as `client` does. `ring` is called when a list may have changed, once for each `arm`."""
        self._pool = client.connection_pool
        self._ring = ring
        self._connection: Any = None
        self._socket: Any = None
        self._hub: Any = None
        self._prefixes: tuple[str, ...] = ()
        self._is_armed = False
        self._is_refused = False
        self._is_pinged = False  # and nothing has come since

    @property
    def is_hung(self) -> bool:
        """Whether notices come, as far as is known."""
        return self._socket is not None

    def hang(self, hub: Any, queues: Sequence[str]) -> None:
        """Connects, and has `hub` wait for a notice of the lists of these queues."""
        self.take_down()
        self._hub = hub
        self._prefixes = _prefixes(queues)
        if self._is_refused or not queues:
            return
        try:
            self._connect()
        except redis.ResponseError as exc:
            self.take_down()
            if name_refusal(exc) is None:
                self._is_refused = True
                log.warning("broker.tells_nothing", error=type(exc).__name__)
        except (redis.RedisError, OSError):  # the Fetcher's own connection tells of it
            self.take_down()

    def arm(self) -> None:
        """Has the hub wait for a notice. One that came since the last call counts.

        While there is work, notices come for each message of each worker. The hub does not wake for them then: see
        `has_rung`.
        """
        if self._socket is not None and not self._is_armed:
            self._is_armed = True
            self._hub.add_reader(self._socket, self._read)

    def has_rung(self) -> bool:
        """Whether a list may have changed since notices were last read. For a busy worker, which is not woken."""
        return self._socket is not None and not self._is_armed and self._drain()

    def look_after(self, queues: Sequence[str]) -> None:
        """Connects again where the connection is gone or silent, or the queues are others. To be called often."""
        if self._hub is None or self._is_refused:
            return
        # The server keeps notices until they are read. Each notice leads to a poll: the worker may be idle by the next
        # timer, and would not poll for a second.
        if self.has_rung():
            self._ring()
        if self._socket is None or self._is_pinged or self._prefixes != _prefixes(queues):
            self.hang(self._hub, queues)
            self._ring()  # what was changed meanwhile
            return
        try:
            self._connection.send_command("PING", check_health=False)
            self._is_pinged = True
        except (redis.RedisError, OSError):
            self.take_down()

    def take_down(self) -> None:
        """Closes the connection. No more notices come."""
        self._disarm()
        self._socket = None
        self._is_pinged = False
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def _connect(self) -> None:
        self._connection = self._pool.connection_class(**self._pool.connection_kwargs)
        self._connection.connect()
        if str(self._connection.get_protocol()) != "3":
            raise redis.ResponseError("notices are messages of RESP3")
        wanted = [part for prefix in self._prefixes for part in ("PREFIX", prefix)]
        self._connection.send_command("CLIENT", "TRACKING", "ON", "BCAST", *wanted)
        self._connection.read_response()
        self._socket = self._connection._sock
        self._socket.setblocking(False)
        self.arm()

    def _disarm(self) -> None:
        if self._is_armed:
            self._is_armed = False
            self._hub.remove_reader(self._socket)

    def _read(self) -> None:
        if self._drain():
            self._disarm()
            self._ring()

    def _drain(self) -> bool:
        """Reads what has come. Whether it was more than a sign of life; the end of the connection counts as well."""
        is_told = False
        try:
            while got := self._socket.recv(_READ_BYTES):
                is_told = is_told or got != _PONG
                self._is_pinged = False
        except (BlockingIOError, ssl.SSLWantReadError):
            return is_told
        except OSError:
            pass
        self.take_down()
        return True


def _prefixes(queues: Sequence[str]) -> tuple[str, ...]:
    """What the keys of these queues begin with: the server takes no prefix of another one."""
    return tuple(
        sorted(one for one in set(queues) if not any(one != o and one.startswith(o) for o in queues))
    )
