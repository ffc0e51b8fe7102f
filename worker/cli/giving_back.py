"""`antrean give-back`: messages of other apps that workers set aside go to the queue of whoever they are for."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from worker.broker.client import broker_address, open_client
from worker.broker.hints import SHARED_QUEUES, list_keys, queues_of
from worker.cli.console import note, out, print_json
from worker.consume.aside import count_aside, give_back
from worker.errors import InputError
from worker.files.home import broker_socket
from worker.reports.summary import format_count
from worker.settings import Settings, load_settings
from worker.storage.engine import Ledger
from worker.storage.identity import fetch_identity
from worker.storage.migrating import prepare_ledger
from worker.storage.workers import fetch_workers
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

    Another app on the same Redis and the same queue (`celery`, unless it says otherwise) loses its tasks to
    whoever reads first. What antrean's workers read of them they set aside, and `antrean doctor` counts it. First
    keep the two apart: a broker or a database number of its own for antrean, or a queue of its own for the other
    app. Then give back, with ANTREAN_BROKER_URL naming the broker where they lie. Refused without --queue while
    workers of this ledger run, who would only set them aside again.
    """
    settings = load_settings()
    ledger = prepare_ledger(settings)
    read_here = _read_queues(ledger, settings)
    if queue is not None and (not queue.isprintable() or not queue or len(queue) > 200):
        raise InputError("--queue: give the name of a queue, 1 to 200 printable characters")
    if queue is None or queue in read_here:
        with ledger.read() as connection:
            living = len(fetch_workers(connection))
        if living:
            raise InputError(
                f"{format_count(living, 'worker')} of this ledger would set them aside again: give antrean a broker "
                "of its own and end the workers here, or name the other app's own queue with --queue"
            )
    if settings.is_broker_embedded and not broker_socket(settings.home).exists():
        raise InputError(
            "the embedded broker does not run, and no other app reaches it: set ANTREAN_BROKER_URL"
        )
    client = open_client(broker_address(settings))
    moved = 0
    try:
        for name in read_here:
            for key in count_aside(client, [name]):
                moved += give_back(client, key, key if queue is None else _same_list(key, name, queue))
    finally:
        client.close()
    if as_json:
        print_json({"messages": moved, "queue": queue})
    elif moved:
        where = "where they lay" if queue is None else f"on {printable(queue)}"
        out.print(Text(f"{format_count(moved, 'message')} put back {where}"))
    else:
        note("nothing was set aside on this broker")


def _read_queues(ledger: Ledger, settings: Settings) -> tuple[str, ...]:
    with ledger.read() as connection:
        own = queues_of(fetch_identity(connection), settings.endpoint)
    return (*SHARED_QUEUES.names, *own.names)


def _same_list(key: str, queue: str, other: str) -> str:
    """The list of the same priority of the `other` queue."""
    return list_keys(other)[list_keys(queue).index(key)]
