"""Runs a simulator as a process of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.loop import new_event_loop
from api_client.simulator.simulator import Simulator

_WANTED_FILES = 65_536


def serve(config: SimulatorConfig, on_ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then returns at once, also while calls are in flight. `on_ready` gets the URL.

    Must be called in the main thread. Raises OSError if the port is in use or the call log cannot be opened.
    """
    _raise_file_limit()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(config, on_ready))


async def _serve(config: SimulatorConfig, on_ready: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(wanted, stopped.set)
    loop.set_exception_handler(tell_defect)
    simulator = Simulator(config)
    on_ready(await simulator.start())
    await stopped.wait()
    await simulator.stop()


def tell_defect(_loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Prints a defect's type and code locations. The texts of the exception and of asyncio may quote a prompt."""
    exc = context.get("exception")
    frames = traceback.extract_tb(exc.__traceback__) if isinstance(exc, BaseException) else []
    places = ", ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
    sys.stderr.write(f"the simulator has a defect: {type(exc).__name__} at {places or '?'}\n")


def _raise_file_limit() -> None:
    # The usual soft limit of 1024 open files would also limit the connections to 1024.
    if sys.platform == "win32":
        return
    import resource  # local: it does not exist on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
