"""`antrean prune`: what ended long ago leaves the ledger."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from worker.cli.console import note, out, print_json
from worker.cli.run_work import hold_abandoned
from worker.clock import SystemClock
from worker.errors import InputError
from worker.reports.summary import format_count
from worker.settings import load_settings
from worker.storage.migrating import prepare_ledger
from worker.storage.pruning import count_ended, count_spared, prune

_AGE = re.compile(r"(\d{1,6})\s*([mhdw])")
_UNIT_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "prune",
        epilog="Example: antrean prune --older-than 30d --dry-run\n\nExample: antrean prune --older-than 12w",
    )(prune_ledger)


def prune_ledger(
    older_than: Annotated[
        str, typer.Option("--older-than", help="An age such as 90m, 36h, 30d or 12w.", show_default=False)
    ],
    with_usage: Annotated[
        bool, typer.Option("--with-usage", help="Remove the token counts as well; `usage` forgets them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many jobs it would be.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Remove jobs that ended long ago, with their requests, results and attempts.

    For all endpoints of this ledger. Jobs that a run which goes on, or a batch that is not done, wants are
    spared, however old; `antrean cancel` ends a batch that nobody will finish. Token counts stay unless
    --with-usage, so that `antrean usage` goes on to say what was paid. Works in small steps beside running
    workers; stopped half way, it goes on when it is called again.

    A job that is removed is forgotten: the same file submitted again is called, and paid for, again. Fetch
    results first. The database's file keeps its size; the room is used again.
    """
    now_ms = SystemClock().now_ms()
    before_ms = now_ms - read_age_ms(older_than)
    settings = load_settings()
    ledger = prepare_ledger(settings)
    hold_abandoned(ledger, settings)  # a run that was killed is no living one
    if dry_run:
        with ledger.read() as connection:
            count = count_ended(connection, before_ms=before_ms)
    else:
        count = prune(ledger, before_ms=before_ms, with_usage=with_usage)
    with ledger.read() as connection:
        spared = count_spared(connection, before_ms=before_ms)
    if as_json:
        print_json({"jobs": count, "spared": spared, "removed": not dry_run, "before_ms": before_ms})
    elif dry_run:
        out.print(f"{format_count(count)} jobs ended more than {older_than} ago; nothing was removed")
    else:
        out.print(f"{format_count(count)} jobs removed")
    if spared and not as_json:
        note(
            f"{format_count(spared, 'job')} spared: a run that goes on or a batch that is not done wants them"
        )


def read_age_ms(text: str) -> int:
    """Milliseconds of an age such as `30d`. Raises InputError."""
    found = _AGE.fullmatch(text.strip().lower())
    if found is None:
        raise InputError(f"--older-than {text!r}: give a number and a unit, such as 90m, 36h, 30d or 12w")
    return int(found[1]) * _UNIT_MS[found[2]]
