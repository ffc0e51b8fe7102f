"""`antrean weight`: a batch's share of the tokens beside other batches, shown or changed."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli.console import out, print_json
from worker.cli.listing import BatchId
from worker.operations.batches import find_named_batch
from worker.operations.weights import read_weight, set_batch_weight
from worker.settings import load_settings
from worker.storage.migrating import prepare_ledger


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "weight",
        epilog="Example: antrean weight batch_0193… 3\n\nExample: antrean weight batch_0193… --json",
    )(weight)


def weight(
    batch: BatchId,
    weight: Annotated[
        str | None, typer.Argument(help="The new weight, from 0.01 to 100.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the weight as JSON.")] = False,
) -> None:
    """Show a batch's weight, or change it.

    Of the tokens that batches take at the same time, one of weight 2 has twice as many as one of weight 1. Workers
    follow within seconds; jobs that they hold already are called first.
    """
    new = None if weight is None else read_weight(weight)
    ledger = prepare_ledger(load_settings())
    found = find_named_batch(ledger, batch)
    set_batch_weight(ledger, found, new)
    now = found.weight if new is None else new
    if as_json:
        print_json({"batch_id": found.id, "weight": now})
        return
    out.say(f"{found.id}: weight {now:g}")
