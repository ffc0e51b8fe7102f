"""Runs a simulator as a process of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.loop import new_event_loop
from api_client.simulator.simulator import Simulator

_WANTED_FILES = 65_536


def serve(config: SimulatorConfig, on_ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then returns at once, also while calls hang. `on_ready` gets the URL.

    For the main thread. Raises OSError if the port is taken or the call log cannot be opened.
    """
    _raise_file_limit()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(config, on_ready))


async def _serve(config: SimulatorConfig, on_ready: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(wanted, stopped.set)
    simulator = Simulator(config)
    on_ready(await simulator.start())
    await stopped.wait()
    await simulator.stop()


def _raise_file_limit() -> None:
    # The usual soft limit of 1024 files is also a limit of 1024 connections.
    if sys.platform == "win32":
        return
    import resource  # Local: it does not exist on Windows.

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
