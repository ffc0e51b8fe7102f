"""One child process of the keeper. It has its own process group, and ends when the keeper ends."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from worker.errors import AntreanError
from worker.files.home import open_log

_HAS_DEATH_SIGNAL = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
# For systems whose kernel sends no signal when a parent dies: a shell reads a pipe whose other end the keeper holds.
# When the keeper ends, `read` returns, and the shell ends the child's process group.
_GUARD = 'read _; kill -TERM "-$1"'


class Child:
    """A started child process. `reap` sets `ended` once it has ended; `status` is then its exit status."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path | int,
        pipe_stdout: bool = False,
        pass_fds: Sequence[int] = (),
        is_guarded: bool = not _HAS_DEATH_SIGNAL,
    ) -> None:
        """Starts it. Raises AntreanError if it cannot.

        Output goes to `log`, a file or a descriptor; with `pipe_stdout`, stdout goes to `self.process.stdout`.
        Must be called from the main thread of a process that has no other threads: the kernel signals the child when
        that thread ends, and code between fork and exec must not need a lock that another thread holds.
        """
        self.ended = asyncio.Event()
        self.status: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        try:
            with open_log(log) if isinstance(log, Path) else os.fdopen(os.dup(log), "wb") as output:
                self.process = subprocess.Popen(
                    argv,
                    env=env,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if pipe_stdout else output,
                    stderr=output,
                    pass_fds=tuple(pass_fds),
                    start_new_session=True,
                    preexec_fn=None if is_guarded else _die_with(os.getpid()),
                )
        except (OSError, subprocess.SubprocessError) as exc:
            raise AntreanError(f"{argv[0]} cannot be started: {exc}") from None
        if is_guarded:
            self._start_guard()

    @property
    def pid(self) -> int:
        return self.process.pid

    def reap(self) -> bool:
        """Whether it has ended. If so, kills what is left of its process group."""
        if self.status is None:
            self.status = self.process.poll()
            if self.status is not None:
                self._kill_group()
                self._end_guard()
                self.ended.set()
        return self.status is not None

    def send(self, number: signal.Signals) -> None:
        if self.status is None:
            self.process.send_signal(number)

    async def stop(self, limit_s: float, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends it the signal `number`, and SIGKILL to its whole group after `limit_s`. Returns when it has ended."""
        self.send(number)
        try:
            await asyncio.wait_for(self.ended.wait(), limit_s)
        except TimeoutError:
            self._kill_group()
            await self.ended.wait()

    def kill_unless_over(self) -> None:
        if self.status is None:
            self._kill_group()

    def _kill_group(self) -> None:
        # The group is empty, or (macOS) has zombies only.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _start_guard(self) -> None:
        read_end, self._lifeline = os.pipe()
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "guard", str(self.pid)], stdin=read_end, start_new_session=True
            )
        finally:
            os.close(read_end)

    def _end_guard(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
            os.close(self._lifeline)
            self._guard = None


def _die_with(keeper_pid: int) -> Callable[[], None]:
    """A function for the child to run before exec: the kernel sends it SIGTERM when `keeper_pid` ends, also by -9."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask_for_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != keeper_pid:  # the keeper died before the line above
            os._exit(1)

    return ask_for_death_signal
