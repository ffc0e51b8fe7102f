"""`antrean worker`: works until it is stopped, or has drained its endpoint."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from worker.errors import InputError
from worker.settings import IN_STACK, load_settings
from worker.text.wrapping import terminal_width

_BANNER_COLUMNS = 100


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "worker",
        epilog="Example: ANTREAN_CONCURRENCY=64 antrean worker\n\n"
        "Example: antrean submit requests.jsonl && antrean worker --drain",
    )(worker)


def worker(
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Celery's node name, such as bulk@%h.")
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="End when no work is left for the endpoint.")
    ] = False,
) -> None:
    """Work on queued jobs until stopped.

    The same as `celery -A worker worker`. ANTREAN_CONCURRENCY sets how many calls it makes at once; `auto`, the
    default, finds that by itself.

    SIGTERM or Ctrl-C lets calls in flight end within ANTREAN_GRACE_S and gives all other jobs back unburnt.

    With --drain it ends by itself when no job of the endpoint is queued, waiting or running, here or at another
    worker. The exit code is 0, or 1 if jobs failed meanwhile, or 130 if it was stopped before. It waits until
    retries, shut gates and pauses are over. It does not wait for the jobs of a stopped run.
    """
    settings = load_settings()
    # Local: Celery takes a third of a second that other commands need not pay.
    from celery.bin.celery import celery

    from worker.celery import app

    # Beside other processes, twenty lines of banner are noise; in a narrow terminal they are torn.
    columns = terminal_width(1) or _BANNER_COLUMNS
    quiet = ["--quiet"] if IN_STACK in os.environ or columns < _BANNER_COLUMNS else []
    argv = [*quiet, "worker", "--loglevel", settings.log_level.upper()]
    if name:
        _check_node_name(name)
        argv += ["--hostname", name]
    if drain:
        argv.append("--drain")
    # `app.worker_main` does the same and drops the exit code.
    celery.params[0].default = app
    raise typer.Exit(celery.main(args=argv, standalone_mode=False) or 0)


def _check_node_name(name: str) -> None:
    from celery.utils.nodenames import default_nodename, host_format  # local: as above

    try:
        known = host_format(default_nodename(name))
    except ValueError:  # a % and a letter that Celery fills nothing in for
        known = ""
    if not known.isprintable() or not known or " " in known:
        raise InputError(
            "--name: must be printable, without spaces, and of the forms with % only %h (host), %n, %d and %%"
        )
