"""Processes of the benchmarks: started in folders of their own, watched from outside, ended by pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.measure import Sample
from bench.options import ROOT

_SAMPLE_EVERY_S = 0.1
_CHILDREN_EVERY = 5  # samples between two looks for new children


class BenchError(Exception):
    """A sentence on what could not be measured."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process that has ended used."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    out: str


def environment(settings: Mapping[str, object] | None = None) -> dict[str, str]:
    """A clean environment with these ANTREAN_ settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ANTREAN_", "CELERY", "OPENAI"))}
    env["PYTHONPATH"] = str(ROOT)
    env["NO_COLOR"] = "1"
    env.update({f"ANTREAN_{name.upper()}": str(value) for name, value in (settings or {}).items()})
    return env


def begin(
    *argv: str, folder: Path, env: Mapping[str, str] | None = None, log: str = "process.log"
) -> subprocess.Popen[bytes]:
    """Starts a Python module in a process group of its own; what it says goes to `log` in `folder`."""
    with (folder / log).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", *argv],
            cwd=folder,
            env=dict(env) if env is not None else environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def run_to_end(*argv: str, folder: Path, env: Mapping[str, str], log: str = "command.out") -> Cost:
    """What a Python module used from start to end, and what it printed. Raises BenchError if it fails."""
    started_s = time.perf_counter()
    path = folder / log
    path.unlink(missing_ok=True)
    process = begin(*argv, folder=folder, env=env, log=log)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - started_s
    if process.returncode:
        raise BenchError(f"{' '.join(argv[:3])} ended with {process.returncode}: {tail(path)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * unit, path.read_text())


def end(process: subprocess.Popen[bytes], *, within_s: float = 45.0) -> None:
    """Asks a process to end, and insists when it does not."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def wait_until(is_so: Callable[[], Any], *, within_s: float, what: str, every_s: float = 0.05) -> None:
    """Returns when it is so. Raises BenchError when it does not become so in time."""
    end_s = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > end_s:
            raise BenchError(f"not within {within_s:g} s: {what}")
        time.sleep(every_s)


def tail(path: Path) -> str:
    """The last thousand characters of a log."""
    return path.read_text(errors="replace")[-1000:] if path.exists() else ""


def tree_usage(pid: int, family: Sequence[psutil.Process] | None = None) -> tuple[float, int]:
    """CPU seconds, those of children that have ended included, and resident bytes of a process and its own."""
    cpu_s, rss_bytes = 0.0, 0
    for process in family_of(pid) if family is None else family:
        with suppress(psutil.Error):
            with process.oneshot():
                times = process.cpu_times()
                rss_bytes += process.memory_info().rss
            cpu_s += times.user + times.system + times.children_user + times.children_system
    return cpu_s, rss_bytes


def family_of(pid: int) -> list[psutil.Process]:
    """A process and its descendants; empty when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def busy_s() -> float:
    """CPU seconds that all cores of this machine were busy, since it started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


class Watch:
    """Samples a process and its descendants ten times a second, from a thread of ours."""

    def __init__(self, pid: int) -> None:
        self.samples: list[Sample] = []
        self._pid = pid
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def peak_bytes(self) -> int:
        return max((sample.rss_bytes for sample in self.samples), default=0)

    def close(self) -> None:
        self._is_ending.set()
        self._thread.join(5)

    def _run(self) -> None:
        family: list[psutil.Process] = []
        known: set[int] = set()
        count = 0
        while not self._is_ending.is_set():
            if count % _CHILDREN_EVERY == 0:
                # A child counts from the second look on: one that was only just forked shares all its memory.
                found = family_of(self._pid)
                family = [one for one in found if one.pid == self._pid or one.pid in known]
                known = {one.pid for one in found}
            count += 1
            cpu_s, rss_bytes = tree_usage(self._pid, family)
            if rss_bytes:
                self.samples.append(Sample(time.time(), cpu_s, rss_bytes))
            self._is_ending.wait(_SAMPLE_EVERY_S)
