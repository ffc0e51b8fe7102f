"""`antrean up`: the whole stack in the foreground, until stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import Annotated

import typer

from worker.attempt.credentials import Credentials
from worker.broker.client import broker_address, check_broker, open_client
from worker.errors import Unreachable
from worker.files.home import open_lock_file, prepare_home, try_lock
from worker.operations.capacity import make_room
from worker.settings import Settings, load_settings
from worker.stack.broker import EmbeddedBroker
from worker.stack.plan import make_plan
from worker.stack.screen import Screen
from worker.stack.supervisor import Supervisor
from worker.storage.migrating import prepare_ledger


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("up", epilog="Example: antrean up --workers 4")(up)


def up(
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, max=64, help="Worker processes.")] = 1,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Leave Flower out.")] = False,
    flower_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Flower's port. Without it the setting, or 5555."),
    ] = None,
    health_every: Annotated[
        float, typer.Option(min=0, help="Seconds between two lines of figures; 0 shows none.")
    ] = 30.0,
) -> None:
    """Run the whole stack in the foreground: database, broker, workers and Flower, until stopped.

    Without ANTREAN_BROKER_URL it starts its own broker. ANTREAN_FLOWER_PORT sets Flower's port. A part that dies is
    started again. Ctrl-C or SIGTERM lets calls in flight end within ANTREAN_GRACE_S and gives all other jobs back
    unburnt; a second Ctrl-C cuts the calls.
    """
    settings = load_settings()
    settings.require_lasting_files()
    Credentials(settings)  # a key file that cannot be read
    make_room(settings)  # the workers inherit the limit
    home = prepare_home(settings.home, has_broker=settings.is_broker_embedded)
    lock = open_lock_file(home / "up.lock")
    if not try_lock(lock):
        raise Unreachable(f"antrean up runs in {home} already: stop it first, or choose another ANTREAN_HOME")
    port = None
    if not no_flower:
        wanted = settings.flower_port if flower_port is None else flower_port
        port = _free_port(settings.flower_address, wanted)
    prepare_ledger(settings).dispose()
    broker = _open_broker(settings)
    screen = Screen(sys.stdout.fileno())
    try:
        plan = make_plan(
            settings,
            os.environ,
            workers=workers,
            flower_port=port,
            health_interval_s=health_every,
        )
        is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        asyncio.run(Supervisor(plan, screen, is_coloured=is_coloured, broker=broker).run())
    finally:
        # What is left is short and must not be cut in two.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if broker is not None:
            broker.detach()
        screen.close()
        os.close(lock)


def _free_port(address: str, port: int) -> int:
    """`port`, or any free one for 0. Raises Unreachable if a process listens there."""
    try:
        with socket.create_server((address, port), family=_family(address)) as probe:
            return int(probe.getsockname()[1])
    except OSError as exc:
        # The socket module lengthens what the system says.
        reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc
        raise Unreachable(
            f"{address}:{port} cannot be listened on ({reason}): choose another --flower-port, or --no-flower"
        ) from None


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _open_broker(settings: Settings) -> EmbeddedBroker | None:
    """The embedded broker, running; None where another is configured and answers."""
    if settings.is_broker_embedded:
        return EmbeddedBroker(settings.home)
    check_broker(open_client(broker_address(settings)))
    return None
