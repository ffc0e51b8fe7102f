"""`antrean budget`: what the answers of a batch may take at most, shown, set or raised."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli.console import note, out, print_json
from worker.cli.listing import BatchId
from worker.operations.batches import find_named_batch
from worker.operations.budgets import (
    describe_budget_wait,
    describe_unpriced,
    fetch_batch_budget,
    read_budget,
    set_budget,
)
from worker.reports.budgets import budget_facts, describe_budget
from worker.settings import load_settings
from worker.storage.migrating import prepare_ledger


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "budget",
        epilog="Example: antrean budget batch_0193… 10usd\n\nExample: antrean budget batch_0193… --json",
    )(budget)


def budget(
    batch: BatchId,
    amount: Annotated[
        str | None,
        typer.Argument(
            help="The most that all its answers may take: 10usd, 500000tok, or none.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the budget as JSON.")] = False,
) -> None:
    """Show a batch's budget, or set it.

    What its answers took before counts. A batch at its budget waits, and goes on when it is raised.
    """
    limit = None if amount is None else read_budget(amount)
    settings = load_settings()
    ledger = prepare_ledger(settings)
    found = find_named_batch(ledger, batch)
    now = set_budget(ledger, settings, found, limit) or fetch_batch_budget(ledger, found.id)
    if limit is not None and (warning := describe_unpriced(ledger, settings, found, limit)):
        note(warning)
    if as_json:
        print_json({"batch_id": found.id, "budget": budget_facts(now)})
        return
    if now is None:
        note(f"{found.id} has no budget: `antrean budget {found.id} 10usd` sets one")
        return
    out.say(f"{found.id}: {describe_budget(now)}")
    waits = describe_budget_wait(ledger, settings, now)
    if waits is not None:
        note(waits)
