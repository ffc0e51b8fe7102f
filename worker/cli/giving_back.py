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
        typer.Option("--queue", help="The queue to put them on. Without it the one where they were."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Put messages of other apps, which workers have set aside, back on their queue.

    If another app uses the same Redis and the same queue (`celery` by default), antrean's workers also read its
    messages. They set these messages aside, and `antrean doctor` counts them. First separate the two: give antrean
    its own broker or database number, or the other app its own queue. Then call this command, with
    ANTREAN_BROKER_URL set to the broker that has the messages. While workers of this ledger run, it needs --queue,
    because they would set the messages aside again.
    """
    settings = load_settings()
    ledger = prepare_ledger(settings)
    moved = give_back.give_messages_back(ledger, settings, queue)
    if as_json:
        print_json({"messages": moved, "queue": queue})
    elif moved:
        where = "where they were" if queue is None else f"on {printable(queue)}"
        out.print(Text(f"{format_count(moved, 'message')} put back {where}"))
    else:
        note("nothing was set aside on this broker")
