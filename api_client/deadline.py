"""The calls in flight, and the watchdog that shuts down the sockets of those past their deadline."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from enum import StrEnum

IDLE_WATCHDOG_S = 30.0


class Cut(StrEnum):
    """Why we ended a call ourselves."""

    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"


class CallCut(OSError):
    """The call was cut. An OSError, so that the HTTP layers below throw its connection away."""


class Stage(StrEnum):
    """How far a call has come."""

    RESOLVING = "resolving"
    CONNECTING = "connecting"
    SENDING = "sending"
    READING = "reading"


class Call:
    """One call in flight: when it began, how far it is, and the socket to shut down to end it."""

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
        """From now on a cut shuts down this socket. Raises CallCut if the call is cut already."""
        with self._lock:
            if self.cut is not None:
                raise CallCut(self.cut)
            self._socket = sock

    def detach(self) -> None:
        """From now on a cut shuts down nothing: the connection may belong to another call."""
        with self._lock:
            self._socket = None

    def wake_on_cut(self, wake: Callable[[], None]) -> None:
        """Have `wake` called by a cut. Raises CallCut if the call is cut already."""
        with self._lock:
            if self.cut is not None:
                raise CallCut(self.cut)
            self._on_cut = wake

    def _end_with(self, cut: Cut) -> bool:
        """Cuts the call. False where it was cut before. The caller holds the register's lock."""
        if self.cut is not None:
            return False
        self.cut = cut
        if self._on_cut is not None:
            self._on_cut()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # not connected yet, or closed by the other side
                # Not SSLSocket.shutdown: that takes the TLS state away from the thread that reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        return True


class CallRegister:
    """All calls of one client. A watchdog thread starts with the first call and ends after 30 s without one."""

    def __init__(self, deadline_s: float, clock: Callable[[], float]) -> None:
        self._deadline_s = deadline_s
        self._clock = clock
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._calls: dict[Call, None] = {}  # oldest first, so the first uncut one is due first
        self._watchdog: threading.Thread | None = None
        self._is_watchdog_idle = False
        self._is_shut = False

    def __len__(self) -> int:
        return len(self._calls)

    def begin(self) -> Call:
        """A new call in flight; give it to `end`. Raises CallCut once the register is shut."""
        with self._lock:
            if self._is_shut:
                raise CallCut(Cut.SHUTDOWN)
            self._ensure_watchdog()
            now_s = self._clock()
            call = Call(self._lock, now_s, now_s + self._deadline_s)
            self._calls[call] = None
            return call

    def end(self, call: Call) -> float:
        """Seconds the call took. It is in flight no more."""
        with self._lock:
            self._calls.pop(call, None)
            call._socket = None
            if self._is_shut and not self._calls:
                self._wake.notify_all()
            return self._clock() - call.began_s

    def cut_all(self) -> int:
        """How many calls were cut now. No further call begins."""
        with self._lock:
            self._is_shut = True
            return sum(call._end_with(Cut.SHUTDOWN) for call in list(self._calls))

    def shut(self) -> None:
        """Lets no further call begin. Those in flight go on, and their deadlines hold."""
        with self._lock:
            self._is_shut = True
            self._wake.notify_all()

    def _ensure_watchdog(self) -> None:
        if self._watchdog is None or not self._watchdog.is_alive():  # dead also after a fork
            self._is_watchdog_idle = False
            self._watchdog = threading.Thread(target=self._watch, name="antrean-deadlines", daemon=True)
            self._watchdog.start()
        elif self._is_watchdog_idle:
            self._wake.notify_all()

    def _watch(self) -> None:
        # An unexpected error ends only this thread: the next call starts another one, and until then the
        # read timeouts hold.
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
                ):  # always wait here: a busy loop would keep the lock from `end`
                    self._is_watchdog_idle = True
                    is_needed = self._wake.wait(IDLE_WATCHDOG_S)
                    self._is_watchdog_idle = False
                if not self._calls and (self._is_shut or not is_needed):
                    self._watchdog = None
                    return
