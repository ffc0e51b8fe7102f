"""Real processes for the acceptance tests: the command line, workers, a simulator. Ended by pid, never by name."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.support.interpreters import ROOT, Process, interpreters


@contextmanager
def ignoring(number: signal.Signals) -> Iterator[None]:
    """Whatever is started inside begins with the signal ignored, as under `nohup`. For the main thread."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def wait_until(is_so: Callable[[], Any], *, within_s: float = 10.0, what: str = "what is waited for") -> Any:
    """Calls `is_so` until its answer is truthy, and returns that answer. Fails the test after `within_s`."""
    end_s = time.monotonic() + within_s
    while True:
        answer = is_so()
        if answer:
            return answer
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    """Whether the process has ended. A zombie, whose parent has not asked for its status yet, has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nothing listens just now."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """A clean environment with these ANTREAN_ settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ANTREAN_", "PYTEST", "CELERY"))}
    env["PYTHONPATH"] = str(ROOT)
    env["NO_COLOR"] = "1"
    env["COLUMNS"] = "200"
    env.update({f"ANTREAN_{name.upper()}": str(value) for name, value in settings.items()})
    return env


@dataclass
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Shop:
    """A folder and settings under which commands and workers run; ends what it started."""

    folder: Path
    settings: dict[str, object] = field(default_factory=dict)
    started: list[Process] = field(default_factory=list)

    def antrean(self, *args: str, timeout_s: float = 90.0, **settings: object) -> Finished:
        """Runs a command to its end."""
        env = environment({**self.settings, **settings})
        code, out, err = interpreters.run(
            ["worker.cli", *args], cwd=self.folder, env=env, timeout_s=timeout_s
        )
        return Finished(code, out.decode(), err.decode())

    def begin(
        self, *args: str, log: str = "command.log", python_path: Path | None = None, **settings: object
    ) -> Process:
        """Starts a command in a process group of its own; its output goes to `log`.

        `python_path` is a folder that this process alone imports from first.
        """
        env = environment({**self.settings, **settings})
        if python_path is not None:
            env["PYTHONPATH"] = f"{python_path}{os.pathsep}{env['PYTHONPATH']}"
        with (self.folder / log).open("ab") as output:
            process = interpreters.begin(
                args,
                cwd=self.folder,
                env=env,
                stdout=output.fileno(),
                stderr=output.fileno(),
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def begin_worker(
        self, *, log: str = "worker.log", python_path: Path | None = None, **settings: object
    ) -> Process:
        """A `celery -A worker worker` that is only just starting."""
        command = ("celery", "-A", "worker", "worker", "-n", f"w{len(self.started)}@%h")
        return self.begin(*command, log=log, python_path=python_path, **settings)

    def worker(
        self, *, log: str = "worker.log", python_path: Path | None = None, **settings: object
    ) -> Process:
        """A `celery -A worker worker` that is ready to take jobs."""
        path = self.folder / log
        before = path.read_text().count("ready.") if path.exists() else 0
        process = self.begin_worker(log=log, python_path=python_path, **settings)

        def is_ready() -> bool:
            assert process.poll() is None, path.read_text()[-2000:]
            return path.read_text().count("ready.") > before

        wait_until(is_ready, within_s=30, what="the worker is ready")
        return process

    def close(self) -> None:
        with ExitStack() as ends:  # each of them, whatever becomes of another
            for process in self.started:
                ends.callback(_end_now, process)


def _end_now(process: Process) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(10)


def end(process: Process, number: int = signal.SIGTERM, *, within_s: float = 40.0) -> tuple[int, float]:
    """Exit code and seconds that a process took to end after a signal."""
    started_s = time.monotonic()
    process.send_signal(number)
    code = process.wait(within_s)
    return code, time.monotonic() - started_s


def processes_under(folder: Path) -> list[str]:
    """Command lines of live processes that name `folder`, or have it as their current folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status", "pid"]):
        line = " ".join(process.info["cmdline"] or [])
        is_alive = process.info["status"] != psutil.STATUS_ZOMBIE and process.info["pid"] != os.getpid()
        if is_alive and (str(folder) in line or (process.info["cwd"] or "").startswith(str(folder))):
            found.append(line)
    return found


class SimulatorProcess:
    """The simulated endpoint in a process of its own, so that it costs the tests' process nothing."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._ended: list[dict[str, dict[str, Any]]] = []  # what the processes before this one counted
        self._begin(0)

    def _begin(self, port: int) -> None:
        output, their_end = os.pipe()
        self._output = os.fdopen(output, "rb")
        try:
            self._process = interpreters.begin(
                ["api_client.simulator", "--port", str(port), *self._options],
                cwd=ROOT,
                env=environment({}),
                stdout=their_end,
                stderr=2,
            )
        finally:
            os.close(their_end)
        line = self._output.readline().decode()
        self.url = line.split()[-1]
        self._drain = threading.Thread(target=self._output.read, daemon=True)
        self._drain.start()

    def kill(self) -> None:
        """kill -9, once it has told its counts: from now on connections are refused."""
        self._ended.append(self.calls_of_this_process())
        self._process.kill()
        self._close_output()

    def restart(self) -> None:
        """Serves again, on the same port and with the options it began with."""
        self._begin(int(self.url.rpartition(":")[2]))

    def stats(self) -> dict[str, Any]:
        return self._get("/simulator/stats")

    def calls(self) -> dict[str, dict[str, Any]]:
        """The counts of each job, over all restarts."""
        total: dict[str, dict[str, Any]] = {}
        for counted in (*self._ended, self.calls_of_this_process()):
            for job, counts in counted.items():
                before = total.get(job, {})
                total[job] = {name: count + before.get(name, 0) for name, count in counts.items()}
        return total

    def calls_of_this_process(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self._get("/simulator/calls")
        return found

    def set_faults(self, **changes: object) -> None:
        self._get("/simulator/faults", changes)

    def close(self) -> None:
        self._process.terminate()
        self._close_output()

    def _close_output(self) -> None:
        self._process.wait(10)
        self._drain.join(5)
        self._output.close()

    def _get(self, path: str, body: Mapping[str, object] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(self.url + path, data=data, timeout=10) as answer:
            return json.load(answer)
