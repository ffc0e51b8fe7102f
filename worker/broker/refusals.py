"""A broker that answers and refuses for a while: it is told once, and asked again every second.

A broker refuses writes while it is full (OOM), while it cannot save its file (MISCONF), and while it is a replica since
a failover (READONLY). What was asked for has not happened then, and the connection is whole. Other errors that a
broker answers, such as a key of a wrong type, do not pass by waiting: they are no refusals.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from time import monotonic

import redis
import structlog

log = structlog.get_logger(__name__)

REFUSED_PAUSE_S = 1.0
_QUIET_S = 60.0
# redis-py has classes for these, and removes their codes from the text.
_CLASSES = {
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.TryAgainError: "TRYAGAIN",
}
_CODES = (*_CLASSES.values(), "MISCONF", "NOREPLICAS", "BUSY")
# Before Redis 7 the text of an error in a script begins with the place in the script. The code follows.
_PLACE_IN_SCRIPT = re.compile(
    r"(?:Error running script \(call to \w+\): @user_script:\d+: )?@user_script: \d+: -"
)


class Refusals:
    """The refusals of one kind of request. Thread-safe."""

    def __init__(self, of: str, monotonic_s: Callable[[], float] = monotonic) -> None:
        """`of` names the kind in the log."""
        self._of = of
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._error: str | None = None
        self._noted_s = float("-inf")

    @property
    def is_pausing(self) -> bool:
        """Whether the last refusal is less than a second ago."""
        return self._monotonic_s() < self._noted_s + REFUSED_PAUSE_S

    def note(self, exc: redis.ResponseError) -> None:
        """Notes a refusal. The first one is told, one for another reason, and one after a quiet minute.

        Raises any other error.
        """
        error = name_refusal(exc)
        if error is None:
            raise exc
        with self._lock:
            last_s, self._noted_s = self._noted_s, self._monotonic_s()
            is_told = error == self._error and self._noted_s < last_s + _QUIET_S
            self._error = error
        if not is_told:
            log.error("broker.refuses", of=self._of, error=error, retry_in_s=REFUSED_PAUSE_S)

    def end(self) -> None:
        """Notes that the broker took such a request. It is told if the last one was refused."""
        if self._error is None:
            return
        with self._lock:
            was_refused, self._error = self._error is not None, None
            self._noted_s = float("-inf")
        if was_refused:
            log.info("broker.takes_again", of=self._of)


def name_refusal(exc: BaseException) -> str | None:
    """The name of a refusal, None for another error. The rest of its text is left out: it may quote a message."""
    if isinstance(exc, tuple(_CLASSES)):
        return type(exc).__name__
    if not isinstance(exc, redis.ResponseError):
        return None
    # A pipeline puts its command before the broker's words, and the command may be a message.
    words = str(exc).rpartition(" of pipeline caused error: ")[2]
    code = words[found.end() if (found := _PLACE_IN_SCRIPT.match(words)) else 0 :].split(" ", 1)[0]
    return code if code in _CODES else None
