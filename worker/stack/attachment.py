"""One command's attachment to the embedded stack. The stack runs for as long as any command is attached."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from worker.errors import AntreanError, Unreachable
from worker.files.home import (
    control_socket,
    last_line,
    open_lock_file,
    open_log,
    prepare_home,
    try_lock,
)
from worker.files.names import FileName, as_text
from worker.stack.environment import inherited_environment

_PROTOCOL = 1
_DEFAULT_GRACE_S = 30.0
_LOCK_LIMIT_S = 10.0
_LOCK_POLL_S = 0.02
_END_LIMIT_S = 5.0  # from the end of a keeper's services to its own end; it takes milliseconds
_CREDENTIALS = struct.Struct("3i")


class StackLost(Unreachable):
    """The keeper of the stack is gone, and with it the broker and the worker."""


def describe_death(event: Mapping[str, Any]) -> str:
    """Describes the end of a service, without its name: `died (signal 9, SIGKILL)`."""
    status = event.get("status")
    reason = event.get("reason", status)  # a keeper of an older version sends no reason
    return f"could not be started again ({reason})" if status is None else f"died ({reason})"


class Stack:
    """An attachment to a home's stack. Not thread-safe. A context manager that detaches on exit."""

    def __init__(self, home: Path, connection: socket.socket) -> None:
        self._home = home
        self._connection = connection
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self._is_last: bool | None = None
        self._stops_worker = False
        self.worker_service = "worker"
        self._has_said_bye = False
        self._keeper: int | None = None  # a descriptor of the keeper's process

    @classmethod
    def attach(cls, home: Path, *, has_broker: bool = True) -> Self:
        """Attaches to the stack of `home`. Starts it if none runs; waits first for one that is stopping.

        Makes the folder if it is missing, for this user alone. `has_broker`: an embedded broker is to run there. Raises
        SettingsError if the folder cannot be used, Unreachable if the keeper does not start.
        """
        home = prepare_home(home, has_broker=has_broker)
        start_lock = open_lock_file(home / "start.lock")
        try:
            # One command at a time attaches or starts: two that run at the same time share one keeper.
            fcntl.flock(start_lock, fcntl.LOCK_EX)
            return cls._attach_running(home) or cls._start_keeper(home)
        finally:
            os.close(start_lock)

    @classmethod
    def _attach_running(cls, home: Path) -> Self | None:
        """An attachment to the keeper that runs, or None once it is certain that none does."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(control_socket(home)))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        stack = cls(home, connection)
        try:
            hello = stack._ask({"op": "hello"})
            if hello.get("error") != "stopping":
                if hello.get("protocol") == _PROTOCOL:
                    stack._keeper = _open_process(_peer_pid(connection))
                    return stack
                stack._connection.close()
                raise AntreanError(f"another version of antrean runs in {home}: stop it first")
            stack._drain()
        except StackLost:
            pass
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    @classmethod
    def _start_keeper(cls, home: Path) -> Self:
        stack_lock = _take_stack_lock(home)
        ours, theirs = socket.socketpair()
        log = home / "logs" / "keeper.log"
        try:
            with theirs, open_log(log) as output:
                arguments = [str(home), str(stack_lock), str(theirs.fileno())]
                starter = subprocess.Popen(
                    # -P: the current folder may hold another `worker.py`.
                    [sys.executable, "-P", "-m", "worker.stack.keeper", *arguments],
                    env=inherited_environment(os.environ),
                    cwd=home,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(stack_lock, theirs.fileno()),
                    start_new_session=True,
                )
            starter.wait()  # it forks the keeper and ends at once
            stack = cls(home, ours)
            stack._keeper = _open_process(int(stack._ask({"op": "hello"})["pid"]))
            return stack
        except (StackLost, OSError) as exc:
            ours.close()
            reason = last_line(log) if isinstance(exc, StackLost) else exc
            raise Unreachable(f"the embedded stack of {home} did not start: {reason}") from None
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(stack_lock)

    def ensure_broker(self) -> str:
        """Starts the broker, waits until it answers, and returns its URL. Raises AntreanError if that fails."""
        return str(self._request({"op": "ensure", "service": "broker"})["broker_url"])

    def ensure_simulator(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> str:
        """Starts the simulator unless one runs, with any argv. Returns its URL once it listens."""
        return str(self._request(self._ensure("simulator", argv, env, cwd))["url"])

    def ensure_worker(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        cwd: Path | None = None,
        grace_s: float | None = None,
    ) -> bool:
        """Starts a worker with these settings unless one runs. False: a worker with other settings runs here, too.

        The worker stops with the last command that asked for these settings. `worker_service` is then its name and
        that of its log.

        `env` is added to this process's environment, from which all ANTREAN_ names are removed first. A stop may take
        `grace_s` seconds, or ANTREAN_GRACE_S of `env` if `grace_s` is None. `cwd`: the home folder unless given. A
        worker that dies is started again after 0.5 s, then after twice as long each time, up to 30 s.
        """
        message = self._ensure("worker", argv, env, cwd)
        message["grace_s"] = (
            float(env.get("ANTREAN_GRACE_S", _DEFAULT_GRACE_S)) if grace_s is None else grace_s
        )
        answer = self._request(message)
        if not answer["same"] and "service" not in answer:
            raise AntreanError(
                f"an older antrean keeps {self._home} and has one worker for all: end its commands first"
            )
        self.worker_service = str(answer.get("service", "worker"))
        return bool(answer["same"])

    def status(self) -> dict[str, Any]:
        """`{"pid": …, "client_count": …, "services": {name: {"pid": … or None, "restart_count": …}}}`."""
        return self._request({"op": "status"})

    def fileno(self) -> int:
        """A descriptor for `select`. It is readable when `poll_events` has events to return."""
        return self._connection.fileno()

    def poll_events(self) -> list[dict[str, Any]]:
        """The events since the last call, oldest first. Never waits.

        All are of this form: `{"event": "service_died", "service": "worker", "status": -9, "reason": "signal 9,
        SIGKILL", "is_restarted": true}`; `describe_death` describes one. A restart that failed has no status.
        Raises StackLost if the keeper is gone.
        """
        with contextlib.suppress(BlockingIOError):
            while True:
                self._receive(socket.MSG_DONTWAIT)
        while (message := self._next_message()) is not None:
            self._events.append(message)
        events, self._events = self._events, []
        return events

    def hurry(self) -> None:
        """Ends the worker's grace, before or during `detach`. No effect while another command uses the worker."""
        with contextlib.suppress(StackLost):  # no keeper: the worker has ended, too
            self._send({"op": "hurry"})

    def detach(self, wait: bool = True) -> bool:
        """Detaches. True if this was the last attachment; then, with `wait`, everything has stopped on return.

        The keeper's process has ended by then, too, so that the next command does not find one that is ending. (On
        macOS, which gives no process descriptors, it may run for some milliseconds more.) If other commands stay
        attached, this returns when the worker that only this command used has stopped.
        After a KeyboardInterrupt it may be called again, to go on waiting. A lost stack counts as stopped.
        """
        try:
            if not self._has_said_bye:
                self._has_said_bye = True
                self._send({"op": "bye"})
            while self._is_last is None:
                answer = self._await_message()
                if "last" in answer:
                    self._is_last = bool(answer["last"])
                    self._stops_worker = bool(answer.get("stops"))
            if wait and (self._is_last or self._stops_worker):
                self._drain()
        except StackLost:
            self._is_last = True if self._is_last is None else self._is_last
        if wait and self._is_last and self._keeper is not None:
            _wait_for_end(self._keeper)
        self._close()
        return self._is_last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.fileno() != -1:
                self.detach()
        finally:
            self._close()

    def _close(self) -> None:
        self._connection.close()
        if self._keeper is not None:
            os.close(self._keeper)
            self._keeper = None

    def _ensure(
        self, service: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None
    ) -> dict[str, Any]:
        return {
            "op": "ensure",
            "service": service,
            # As text: the keeper's locale is that of the command that started it, perhaps another one.
            "argv": [as_text(FileName(one)) for one in argv],
            "env": _as_text(env),
            "base_env": _as_text(inherited_environment(os.environ)),
            "cwd": as_text(self._home if cwd is None else cwd),
        }

    def _request(self, message: dict[str, Any]) -> dict[str, Any]:
        answer = self._ask(message)
        if answer.get("ok"):
            return answer
        if answer.get("error") == "stopping":  # the keeper was told to end
            raise StackLost(f"the embedded stack of {self._home} is stopping: run the command again")
        kind = Unreachable if answer.get("is_unreachable") else AntreanError
        raise kind(
            answer.get("sentence", "the embedded stack does not know this request: stop it and try again")
        )

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._send(message)
        while "event" in (answer := self._await_message()):
            self._events.append(answer)
        return answer

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost() from None

    def _await_message(self) -> dict[str, Any]:
        while (message := self._next_message()) is None:
            self._receive()
        return message

    def _next_message(self) -> dict[str, Any] | None:
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        message: dict[str, Any] = json.loads(line)
        return message

    def _receive(self, flags: int = 0) -> None:
        try:
            data = self._connection.recv(65536, flags)
        except ConnectionResetError:
            data = b""
        if not data:
            raise self._lost()
        self._buffer += data

    def _drain(self) -> None:
        """Waits for the end of file. It comes when the keeper has stopped everything."""
        with contextlib.suppress(StackLost):
            while True:
                self._receive()

    def _lost(self) -> StackLost:
        return StackLost(f"the embedded stack of {self._home} is gone: run the command again")


def _as_text(env: Mapping[str, str]) -> dict[str, str]:
    return {as_text(FileName(name)): as_text(FileName(value)) for name, value in env.items()}


def _peer_pid(connection: socket.socket) -> int:
    """The pid of the process at the other end; 0 if this process cannot see it, as it is in another container."""
    if sys.platform != "linux":
        return 0
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[0])


def _open_process(pid: int) -> int | None:
    """A descriptor of a process that becomes readable when it ends; None where the system has no such descriptors."""
    if sys.platform != "linux" or pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None  # an older kernel, or the process has ended already


def _wait_for_end(process: int) -> None:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.poll(_END_LIMIT_S * 1000)


def _take_stack_lock(home: Path) -> int:
    """The descriptor of the locked `stack.lock`. A keeper that holds the lock but does not answer is ending."""
    lock = open_lock_file(home / "stack.lock")
    deadline = time.monotonic() + _LOCK_LIMIT_S
    while not try_lock(lock):
        if time.monotonic() > deadline:
            os.close(lock)
            raise Unreachable(f"the keeper of {home} does not answer: end it, or choose another ANTREAN_HOME")
        time.sleep(_LOCK_POLL_S)
    return lock
