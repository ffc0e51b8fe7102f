"""Where tests get their Python processes from: forked from a ready one where that is as good, else new interpreters.

New ones are had with `--full` and `--storm`, with REAL_INTERPRETERS=1, in tests that are marked `real_interpreter`, and
wherever a process is to begin with another environment or other limits than the fork server.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.forkserver import MODULES, ForkedProcess, ForkServer

ROOT = Path(__file__).resolve().parents[2]
Process = subprocess.Popen[bytes] | ForkedProcess


class Interpreters:
    """All processes `python -P -m …` that tests start, of this process of pytest's."""

    def __init__(self, modules: Sequence[str] = MODULES) -> None:
        self.may_fork = False
        self._modules = modules  # that may be forked
        self._server: ForkServer | None = None
        self._lock = threading.Lock()

    @property
    def server_pid(self) -> int | None:
        """The fork server's, if one was needed."""
        return None if self._server is None else self._server.pid

    def begin(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: int,
        stderr: int,
        start_new_session: bool = False,
    ) -> Process:
        """Starts `python -P -m ARGUMENTS` with nothing on standard input."""
        with open(os.devnull, "rb") as nothing:
            streams = {"stdin": nothing.fileno(), "stdout": stdout, "stderr": stderr}
            server = self._server_for(arguments, env, *streams.values())
            if server is not None:
                return server.begin(
                    arguments, cwd=cwd, env=env, start_new_session=start_new_session, **streams
                )
            return subprocess.Popen(
                [sys.executable, "-P", "-m", *arguments],
                cwd=cwd,
                env=env,
                start_new_session=start_new_session,
                **streams,
            )

    def run(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float
    ) -> tuple[int, bytes, bytes]:
        """Exit code, standard output and standard error of `python -P -m ARGUMENTS`. In time, or it is killed."""
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        try:
            process = self.begin(arguments, cwd=cwd, env=env, stdout=out_end, stderr=err_end)
        except BaseException:
            os.close(out)
            os.close(err)
            raise
        finally:
            os.close(out_end)
            os.close(err_end)
        end_s = time.monotonic() + timeout_s
        try:
            said = _read_to_their_ends([out, err], end_s)
            return process.wait(max(0.0, end_s - time.monotonic())), said[0], said[1]
        except TimeoutError:
            raise subprocess.TimeoutExpired(process.args, timeout_s) from None
        finally:
            process.kill()
            process.wait(10)
            os.close(out)
            os.close(err)

    def close(self) -> None:
        """Ends the fork server, if there is one, and what is left of its processes."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _server_for(
        self, arguments: Sequence[str], env: Mapping[str, str], *streams: int
    ) -> ForkServer | None:
        if not self.may_fork or arguments[0] not in self._modules:
            return None
        with self._lock:
            if self._server is None or self._server.has_ended:
                self._server = ForkServer(env, ROOT)
        return self._server if self._server.is_like(env, *streams) else None


interpreters = Interpreters()


def is_forking_wanted() -> bool:
    """Whether this machine can fork, and nobody asked for new interpreters."""
    return sys.platform == "linux" and not os.environ.get("REAL_INTERPRETERS")


def _read_to_their_ends(descriptors: Sequence[int], end_s: float) -> list[bytes]:
    """What each of these pipes gives until all its writers have closed it. Raises TimeoutError."""
    said = {one: bytearray() for one in descriptors}
    with selectors.PollSelector() as selector:
        for one in descriptors:
            selector.register(one, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, end_s - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                data = os.read(key.fd, 65536)
                said[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
    return [bytes(said[one]) for one in descriptors]
