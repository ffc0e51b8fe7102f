"""`antrean health`: for the health checks of containers."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli.console import complain, out
from worker.errors import AntreanError
from worker.operations.health import check_address, check_worker
from worker.settings import load_settings


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "health",
        epilog="Example: antrean health\n\nExample: antrean health --url http://127.0.0.1:5555/healthcheck",
    )(health)


def health(
    url: Annotated[
        str | None, typer.Option(help="Ask this address instead of looking for this host's worker.")
    ] = None,
) -> None:
    """Check whether a worker of this host and its broker are alive, for health checks of containers.

    It looks in the ledger for a worker of this host name with a heartbeat within its lease, and asks the broker. If
    the database is away, the answer is no, too. Use it for alarms and for upgrades, but do not let it kill a
    worker: a worker that waits for its database holds paid answers, and goes on by itself. The exit code is 0 if
    all is well, and 1 if not.
    """
    try:
        out.print(check_worker(load_settings()) if url is None else check_address(url))
    except AntreanError as exc:
        complain(str(exc))
        raise typer.Exit(1) from None  # what container engines know; they keep 2 for themselves
