"""`antrean flower`: the web page on workers and tasks."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from worker.settings import IN_STACK


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("flower", epilog="Example: antrean flower --port 5556")(flower)


def flower(
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The port to listen on. Without it the setting, or 5555."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="The address to listen on. Without it the setting, or 127.0.0.1."),
    ] = None,
) -> None:
    """Watch workers and tasks in a browser: the same as `celery -A worker flower`.

    Log in as antrean, with ANTREAN_FLOWER_PASSWORD or the password in <home>/flower.password. It is read-only: no
    button stops or changes anything. ANTREAN_FLOWER_PORT and ANTREAN_FLOWER_ADDRESS set where it listens.
    """
    from worker.celery import app  # local: Celery takes a third of a second that other commands need not pay

    # Beside other processes its banner, with all of Celery's own tasks, is noise.
    argv = [*(["--quiet"] if IN_STACK in os.environ else []), "flower"]
    if port is not None:
        argv.append(f"--port={port}")
    if address is not None:
        argv.append(f"--address={address}")
    raise typer.Exit(app.start(argv) or 0)
