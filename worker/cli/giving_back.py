"""`antrean give-back`: messages of other apps, which workers set aside, go back to a queue of that app."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from worker.cli.console import note, out, print_json
from worker.operations import give_back
from worker.reports.summary import format_count
from worker.settings import load_settings
from worker.storage.migrating import prepare_ledger
from worker.text.printable import printable


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "give-back",
        epilog="Example: antrean give-back --queue theirs\n\n"
        "Example: ANTREAN_BROKER_URL=redis://queue:6379/0 antrean give-back",
    )(give_messages_back)


def give_messages_back(
    queue: Annotated[
        str | None,
        typer.Option("--queue", help="The queue to put them on; where they lay unless given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Give the messages back that workers read and that are another app's.

    Another app on the same Redis and the same queue (`celery`, unless it says otherwise) loses tasks that antrean's
    workers read first. They set these messages aside, and `antrean doctor` counts them. First keep the two apart: a
    broker or a database number of its own for antrean, or a queue of its own for the other app. Then give back, with
    ANTREAN_BROKER_URL naming the broker where they lie. Refused without --queue while workers of this ledger run,
    which would set them aside again.
    """
    settings = load_settings()
    ledger = prepare_ledger(settings)
    moved = give_back.give_messages_back(ledger, settings, queue)
    if as_json:
        print_json({"messages": moved, "queue": queue})
    elif moved:
        where = "where they lay" if queue is None else f"on {printable(queue)}"
        out.print(Text(f"{format_count(moved, 'message')} put back {where}"))
    else:
        note("nothing was set aside on this broker")
