"""Processes of ours, forked from one that has all of our modules loaded: a tenth of what a new interpreter costs.

A forked process is what `python -P -m MODULE …` would be: its own working folder, environment, descriptors, signals,
threads, exit functions and exit code. It differs in its command line as `ps` shows it, which is this server's, in its
hash seed, and in that at a normal exit its modules are not torn down. It is used only where nothing else can differ
(`ForkServer.is_like`).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODULES = ("worker.cli", "celery", "api_client.simulator")
"""What can be run: these load nothing that the server has not loaded."""

# These make the Celery app from the settings of the process that imports them.
_MAKE_AN_APP = {"worker.celery", "worker.tasks", "worker.flower.config"}
_OF_OTHERS = (
    "alembic.command",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.bin.worker",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "kombu.transport.redis",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "typer.rich_utils",
    "uvloop",
)
_OURS = "ANTREAN_"  # read when a process runs, never when a module is imported


class ForkServer:
    """The server, as those see it who start processes. It ends with this process, and its processes with it."""

    def __init__(self, env: Mapping[str, str], cwd: Path) -> None:
        self._world = _world(env)
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.support.forkserver", str(theirs.fileno())],
                cwd=cwd,
                env={name: value for name, value in env.items() if not name.startswith(_OURS)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is this process's, which then ends the server
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def is_like(self, env: Mapping[str, str], *descriptors: int) -> bool:
        """Whether a new interpreter would begin with all that the server began with, but for our own settings."""
        return self._world == _world(env) and not any(map(os.isatty, descriptors))

    def begin(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
        start_new_session: bool,
    ) -> ForkedProcess:
        """Starts `python -P -m ARGUMENTS`. The descriptors stay the caller's to close."""
        ours, theirs = socket.socketpair()
        request = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "env": dict(env),
            "session": start_new_session,
        }
        with theirs, self._lock:
            socket.send_fds(self._control, [b"+"], [theirs.fileno(), stdin, stdout, stderr])
        ours.sendall(json.dumps(request).encode() + b"\n")
        return ForkedProcess(ours, arguments)

    def close(self) -> None:
        """Ends the server, and with kill -9 those of its processes that live."""
        self._control.close()
        self._process.wait(30)


class ForkedProcess:
    """A process of the server's, to be used as a `subprocess.Popen`."""

    def __init__(self, conversation: socket.socket, arguments: Sequence[str]) -> None:
        self.args = list(arguments)
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._conversation = conversation
        self._answers = conversation.makefile("rb")
        first = self._answers.readline()
        if not first:
            raise RuntimeError("the fork server has ended")
        self.pid = int(first)

    def poll(self) -> int | None:
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._await(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                self.wait(10)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _await(self, timeout_s: float | None) -> int | None:
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self.returncode is None:
            left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
            with selectors.PollSelector() as selector, self._lock:
                if self.returncode is not None:
                    break
                selector.register(self._conversation, selectors.EVENT_READ)
                if selector.select(0 if left_s is None else min(left_s, 0.05)):
                    told = self._answers.readline()
                    if not told:
                        raise RuntimeError("the fork server has ended, and its processes with it")
                    self.returncode = int(told)
                    self._answers.close()
                    self._conversation.close()
                elif left_s == 0:
                    return None
        return self.returncode


def _world(env: Mapping[str, str]) -> tuple[object, ...]:
    """All that an interpreter is born with, and that its modules may read as they are loaded."""
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    inherited = tuple(facts[name].strip() for name in ("Umask", "SigIgn", "Uid", "Gid"))
    limits = Path("/proc/self/limits").read_text()
    return inherited, limits, {name: value for name, value in env.items() if not name.startswith(_OURS)}


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid = os.getpid()
        self._conversations: dict[int, tuple[int, socket.socket]] = {}  # by pidfd, with the pid
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any]:
        """Returns in each process that is forked, with what it shall be. The server itself ends here.

        An error ends its processes with it.
        """
        try:
            return self._serve()
        except BaseException:
            if os.getpid() == self._pid:
                for pid, _ in self._conversations.values():
                    os.kill(pid, signal.SIGKILL)
            raise

    def _serve(self) -> dict[str, Any]:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._control:
                    self._tell_end(int(key.fd))
                    continue
                told, descriptors, _, _ = socket.recv_fds(self._control, 1, 4)
                if not told:
                    self._end()
                request = self._fork(*descriptors)
                if request is not None:
                    return request

    def _fork(self, conversation: int, *streams: int) -> dict[str, Any] | None:
        asked = socket.socket(fileno=conversation)
        with asked.makefile("rb") as lines:
            line = lines.readline()
        if not line:  # whoever asked has ended before it said for what
            asked.close()
            for stream in streams:
                os.close(stream)
            return None
        request: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            asked.close()
            self._forget()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            return request
        for stream in streams:
            os.close(stream)
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            raise
        self._conversations[handle] = pid, asked
        self._selector.register(handle, selectors.EVENT_READ)
        _tell(asked, pid)
        return None

    def _forget(self) -> None:
        """Closes all that is the server's: a forked process has none of its descriptors."""
        self._selector.close()
        self._control.close()
        for handle, (_, conversation) in self._conversations.items():
            os.close(handle)
            conversation.close()

    def _tell_end(self, handle: int) -> None:
        pid, conversation = self._conversations.pop(handle)
        self._selector.unregister(handle)
        os.close(handle)
        with conversation:
            _tell(conversation, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def _end(self) -> None:
        for pid, _ in self._conversations.values():
            os.kill(pid, signal.SIGKILL)  # not waited for yet, so it is no other process's number
        for handle in list(self._conversations):
            self._tell_end(handle)
        os._exit(0)


def _tell(conversation: socket.socket, number: int) -> None:
    try:
        conversation.sendall(b"%d\n" % number)
    except BrokenPipeError:
        return  # nobody waits for it


def _load(name: str) -> None:
    if name in _MAKE_AN_APP or name.endswith("__main__") or ".migrations" in name:
        return
    module = importlib.import_module(name)
    for one in pkgutil.iter_modules(getattr(module, "__path__", ())):
        _load(f"{name}.{one.name}")


def _become(request: Mapping[str, Any]) -> None:
    """Makes of this forked process what a new interpreter is before it runs its module."""
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["-m", *request["arguments"][1:]]
    sys.stdin = sys.__stdin__ = _open_stream(0, sys.stdin)
    sys.stdout = sys.__stdout__ = _open_stream(1, sys.stdout)
    sys.stderr = sys.__stderr__ = _open_stream(2, sys.stderr)


def _open_stream(number: int, before: Any) -> Any:
    """The stream as a new interpreter opens it. What the server found out of its own descriptor may not hold here."""
    buffering = 0 if before.write_through else -1
    binary: Any = os.fdopen(number, "wb" if number else "rb", buffering, closefd=False)
    getattr(binary, "raw", binary).name = before.name
    stream: Any = io.TextIOWrapper(
        binary,
        encoding=before.encoding,
        errors=before.errors,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )
    stream.mode = before.mode
    before.detach()
    return stream


class _Leaving:
    """Ends an ordinary process once all has been done that is done at an exit, without taking its modules apart.

    To be made before any module is loaded that registers an exit function: the first one registered is the last to run.
    """

    def __init__(self) -> None:
        # None: the interpreter ends in its own way, with a traceback or by a signal.
        self.code: int | None = None
        atexit.register(self._leave)

    def _leave(self) -> None:
        if self.code is None:
            return
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None and not stream.closed:
                    stream.flush()
        except (OSError, ValueError):
            return  # the interpreter fails at it too, and says so
        os._exit(self.code & 0xFF)


def _run(module: str, leaving: _Leaving) -> None:
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            leaving.code = exc.code or 0
        raise
    leaving.code = 0


def _main() -> None:
    leaving = _Leaving()
    for name in _OF_OTHERS:
        importlib.import_module(name)
    for name in ("schemas", "api_client", "worker"):
        _load(name)
    gc.collect()
    gc.freeze()
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise RuntimeError("a module starts a thread as it is loaded: no process can be forked from this one")
    request = _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    _become(request)
    _run(request["arguments"][0], leaving)


if __name__ == "__main__":
    _main()
