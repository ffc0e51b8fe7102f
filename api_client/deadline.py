"""The calls in flight, and a watchdog that cuts those past their deadline by shutting down their sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from enum import StrEnum

IDLE_WATCHDOG_S = 30.0


class Cut(StrEnum):
    """Why the client cut a call itself."""

    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"


class CallCut(OSError):
    """The call was cut. It is an OSError, so that the HTTP layers discard the connection."""


class Stage(StrEnum):
    """The progress of a call."""

    RESOLVING = "resolving"
    CONNECTING = "connecting"
    SENDING = "sending"
    READING = "reading"


class Call:
    """One call in flight: its start, its stage, and the socket that a cut shuts down."""

    __slots__ = ("_lock", "_on_cut", "_socket", "began_s", "cut", "deadline_at_s", "stage")

    def __init__(self, lock: threading.Lock, began_s: float, deadline_at_s: float) -> None:
        self._lock = lock
        self._socket: socket.socket | None = None
        self._on_cut: Callable[[], None] | None = None
        self.began_s = began_s
        self.deadline_at_s = deadline_at_s
        self.cut: Cut | None = None
        self.stage = Stage.SENDING

    def attach(self, sock: socket.socket) -> None:
        """Sets the socket that a cut shuts down. Raises CallCut if the call is cut already."""
        with self._lock:
            if self.cut is not None:
                raise CallCut(self.cut)
            self._socket = sock

    def detach(self) -> None:
        """Removes the socket: a later cut shuts down nothing, as the connection may serve another call then."""
        with self._lock:
            self._socket = None

    def wake_on_cut(self, wake: Callable[[], None]) -> None:
        """Sets a function that a cut calls. Raises CallCut if the call is cut already."""
        with self._lock:
            if self.cut is not None:
                raise CallCut(self.cut)
            self._on_cut = wake

    def _end_with(self, cut: Cut) -> bool:
        """Cuts the call. False if it was cut before. The caller holds the register's lock."""
        if self.cut is not None:
            return False
        self.cut = cut
        if self._on_cut is not None:
            self._on_cut()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # not connected yet, or closed by the peer
                # Not SSLSocket.shutdown, which would remove the TLS state that the reading thread uses.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        return True


class CallRegister:
    """The calls in flight of one client. A watchdog thread starts with the first call, and ends after 30 s without."""

    def __init__(self, deadline_s: float, clock: Callable[[], float]) -> None:
        self._deadline_s = deadline_s
        self._clock = clock
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._calls: dict[Call, None] = {}  # oldest first: the first uncut one has the earliest deadline
        self._watchdog: threading.Thread | None = None
        self._is_watchdog_idle = False
        self._is_shut = False

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def oldest_s(self) -> float | None:
        """For how many seconds the oldest call has been in flight; None without one."""
        with self._lock:
            oldest = next(iter(self._calls), None)
            return None if oldest is None else self._clock() - oldest.began_s

    def begin(self) -> Call:
        """A new call in flight. The caller must pass it to `end`. Raises CallCut once the register is shut."""
        with self._lock:
            if self._is_shut:
                raise CallCut(Cut.SHUTDOWN)
            self._ensure_watchdog()
            now_s = self._clock()
            call = Call(self._lock, now_s, now_s + self._deadline_s)
            self._calls[call] = None
            return call

    def end(self, call: Call) -> float:
        """Ends a call, and returns its duration in seconds."""
        with self._lock:
            self._calls.pop(call, None)
            call._socket = None
            if self._is_shut and not self._calls:
                self._wake.notify_all()
            return self._clock() - call.began_s

    def cut_all(self) -> int:
        """Cuts all calls, and returns how many were cut now. No further call may begin."""
        with self._lock:
            self._is_shut = True
            return sum(call._end_with(Cut.SHUTDOWN) for call in list(self._calls))

    def shut(self) -> None:
        """No further call may begin. Those in flight go on, with their deadlines."""
        with self._lock:
            self._is_shut = True
            self._wake.notify_all()

    def _ensure_watchdog(self) -> None:
        if self._watchdog is None or not self._watchdog.is_alive():  # after a fork it is not alive
            self._is_watchdog_idle = False
            self._watchdog = threading.Thread(target=self._watch, name="antrean-deadlines", daemon=True)
            self._watchdog.start()
        elif self._is_watchdog_idle:
            self._wake.notify_all()

    def _watch(self) -> None:
        # An unexpected error ends only this thread. The next call starts another one; until then the read timeouts
        # limit the calls.
        with self._lock:
            while True:
                due = next((call for call in self._calls if call.cut is None), None)
                if due is not None:
                    wait_s = due.deadline_at_s - self._clock()
                    if wait_s <= 0:
                        due._end_with(Cut.DEADLINE)
                    else:
                        self._wake.wait(wait_s)
                    continue
                is_needed = True
                if (
                    not self._is_shut or self._calls
                ):  # always wait here: without it a busy loop would hold the lock that `end` needs
                    self._is_watchdog_idle = True
                    is_needed = self._wake.wait(IDLE_WATCHDOG_S)
                    self._is_watchdog_idle = False
                if not self._calls and (self._is_shut or not is_needed):
                    self._watchdog = None
                    return
