"""A wait for messages that takes none.

BRPOP waits and pops at once, and what it pops may never arrive. Here the server is asked whether a list exists, and
told to push a notice as soon as one that was asked for changes (CLIENT TRACKING, made for caches in clients): from
Redis 6.0 on and in every Valkey, no message travels, and nothing is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import redis
import structlog

log = structlog.get_logger(__name__)

_TRACKING, _COUNT = "tracking", "count"


class Doorbell:
    """The bell at one socket of a connection, which nobody else reads or writes."""

    def __init__(self, connection: Any) -> None:
        """`connection`: redis-py's, connected. Raises redis.ConnectionError."""
        self._connection = connection
        self._socket = connection._sock
        self._due: deque[str] = deque()
        self.keys: tuple[str, ...] = ()
        # Notices are messages of RESP3; whoever pins the older protocol asks again and again.
        self.is_told = str(connection.get_protocol()) == "3"
        if self.is_told:
            connection._parser.set_invalidation_push_handler(lambda notice: notice)
            self._send(_TRACKING, "CLIENT", "TRACKING", "ON")

    @property
    def is_waiting_for_an_answer(self) -> bool:
        """Whether the server has not answered yet; notices do not count."""
        return bool(self._due)

    def is_at(self, connection: Any) -> bool:
        """Whether the connection still has the socket that this bell was hung at."""
        return self._socket is not None and connection._sock is self._socket

    def ask(self, keys: Sequence[str]) -> None:
        """Whether one of these lists exists; if none does, the next to appear rings. Raises redis.ConnectionError."""
        self.keys = tuple(keys)
        self._send(_COUNT, "EXISTS", *keys)

    def has_rung(self) -> bool:
        """Reads what has come, which must be something: whether a list may have a message now.

        Raises redis.RedisError.
        """
        rung = False
        while True:
            try:
                # As a push request: otherwise redis-py swallows a notice and blocks until an answer follows.
                answer = self._connection.read_response(push_request=True, disconnect_on_error=True)
            except redis.ResponseError as exc:
                if not self._due or self._due.popleft() != _TRACKING:
                    raise
                self.is_told = False
                log.warning("broker.tells_nothing", error=type(exc).__name__)
            else:
                rung |= self._means_a_message(answer)
            if not self._connection.can_read(0):
                return rung

    def _means_a_message(self, answer: Any) -> bool:
        if answer is None or isinstance(answer, list):
            changed = answer[1] if answer and len(answer) > 1 else None  # None: all was flushed, or who knows
            # A list that was asked for earlier may not be wanted now.
            return changed is None or any(key.decode() in self.keys for key in changed)
        asked = self._due.popleft()
        return asked == _COUNT and int(answer) > 0

    def _send(self, asked: str, *command: str) -> None:
        # redis-py's own health check would read, and lose, a notice.
        self._connection.send_command(*command, check_health=False)
        self._due.append(asked)
