"""`antrean pause` and `resume`: an endpoint's jobs are claimed no more, and are claimed again."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from worker.cli.console import note, out, print_json
from worker.cli.listing import iso
from worker.operations.pause import pause_endpoint, resume_endpoint
from worker.operations.served import why_nobody_works
from worker.settings import load_settings
from worker.storage.migrating import prepare_ledger
from worker.storage.pauses import Pause
from worker.text.printable import printable


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(
        "pause",
        epilog='Example: antrean pause "the endpoint is being moved"\n\nExample: antrean pause --json',
    )(pause)
    app.command("resume", epilog="Example: antrean resume")(resume)


def pause(
    reason: Annotated[
        str | None, typer.Argument(help="Why, as `antrean status` shows it.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the pause as JSON.")] = False,
) -> None:
    """Claim no more jobs of the endpoint until `antrean resume`.

    A pause applies to all workers of ANTREAN_BASE_URL (or ANTREAN_ENDPOINT_NAME), also to those that start later.
    Calls in flight end and are recorded, and jobs may still be submitted. Workers keep running. If the endpoint is
    paused already, the first pause stays.
    """
    settings = load_settings()
    ledger = prepare_ledger(settings)
    endpoint = settings.endpoint
    is_new, found = pause_endpoint(ledger, endpoint, reason)
    if as_json:
        print_json({"endpoint": endpoint, "paused": True, "changed": is_new, **_facts(found)})
        return
    if found is None:  # another command resumed it in the same moment
        out.print(Text(f"{printable(endpoint)} was resumed meanwhile"))
        return
    out.print(Text(describe_pause(found) if is_new else f"{describe_pause(found)} (it was paused before)"))
    if is_new:
        out.print("calls in flight end; `antrean resume` goes on")


def resume(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """End a pause: jobs of the endpoint are claimed again.

    It does nothing if the endpoint is not paused.
    """
    settings = load_settings()
    ledger = prepare_ledger(settings)
    endpoint = settings.endpoint
    ended = resume_endpoint(ledger, endpoint)
    if as_json:
        print_json({"endpoint": endpoint, "paused": False, "changed": ended is not None, **_facts(ended)})
    elif ended is None:
        out.print(Text(f"{printable(endpoint)} was not paused"))
    else:
        out.print(
            Text(f"{printable(endpoint)} goes on; it was paused since {iso(ended.paused_at_ms)}{_why(ended)}")
        )
        if why_nobody := why_nobody_works(ledger, settings, endpoint):
            note(why_nobody)


def describe_pause(found: Pause) -> str:
    """One line: what is paused, since when, and why."""
    return f"{printable(found.endpoint)} is paused since {iso(found.paused_at_ms)}{_why(found)}"


def _why(found: Pause) -> str:
    return f": {printable(found.reason)}" if found.reason else ""


def _facts(found: Pause | None) -> dict[str, Any]:
    return {
        "paused_at": None if found is None else iso(found.paused_at_ms),
        "reason": None if found is None else found.reason,
    }
