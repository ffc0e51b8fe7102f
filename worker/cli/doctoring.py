"""`antrean doctor`: what is wrong with the ledger, the spool, the workers and the broker, and its repair."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.text import Text

from worker.cli.console import note, out, print_json
from worker.cli.doctor_words import MEANINGS
from worker.errors import ExitCode
from worker.operations.doctor import Examination, examine, mend
from worker.reports.summary import format_count, format_seconds
from worker.settings import load_settings
from worker.storage.doctor import Finding
from worker.storage.engine import open_ledger
from worker.storage.errors import NotMigrated
from worker.text.printable import printable


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor", epilog="Example: antrean doctor\n\nExample: antrean doctor --repair --json")(doctor)


def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Make the safe repairs; without it nothing is changed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Check the ledger for defects, and say what to do about them.

    It checks jobs, results, token counts, claims of dead workers, answers left in the spool of this home, jobs that
    no worker will ever take, and the broker. Each finding has a name, a count and a few ids, never a prompt or an
    answer.

    With --repair it makes the repairs that are safe, in small steps; workers may run meanwhile. The exit code is 0
    if nothing was found or all of it was repaired, and 1 if something remains for a person.
    """
    settings = load_settings()
    ledger = open_ledger(settings)
    if settings.database_url is None and not (settings.home / "antrean.db").is_file():
        raise NotMigrated(f"there is no ledger in {settings.home} yet: `antrean submit` or `run` makes one")
    began_s = time.perf_counter()
    first = last = examine(ledger, settings)
    if repair and first.is_repairable:
        last = mend(ledger, settings, first)
    _print(first, last, was_repair=repair, took_s=time.perf_counter() - began_s, as_json=as_json)
    if last.findings:
        raise typer.Exit(ExitCode.FAILED_JOBS)


def _print(first: Examination, last: Examination, *, was_repair: bool, took_s: float, as_json: bool) -> None:
    remaining = {one.name: one for one in last.findings}
    findings = {one.name: one for one in (*last.findings, *first.findings)}  # as first found, where it was
    if as_json:
        print_json(
            {
                "ok": not last.findings,
                "findings": [_facts(one, remaining.get(one.name)) for one in findings.values()],
                "broker": {"messages": last.messages, "published_jobs": last.published},
                "took_s": round(took_s, 3),
            }
        )
        return
    for one in findings.values():
        left = remaining.get(one.name)
        verdict = "repaired" if left is None else "--repair does it" if left.is_repairable else "for a person"
        style = "green" if left is None else "bold red"
        out.print(Text(f"{one.name}: {format_count(one.count)}, {verdict}", style=style))
        out.print(Text(f"  {MEANINGS[one.name]}"))
        if one.examples:
            out.print(Text(f"  {', '.join(printable(name) for name in one.examples)}"))
    in_broker = "not asked" if last.messages is None else format_count(last.messages, "message")
    note(
        f"broker: {in_broker}; {format_count(last.published, 'job')} published; looked for {format_seconds(took_s)}"
    )
    if not findings:
        out.print("nothing is wrong")
    elif not was_repair and last.is_repairable:
        note("`antrean doctor --repair` does what is safe to do")


def _facts(one: Finding, left: Finding | None) -> dict[str, Any]:
    remaining = 0 if left is None else left.count
    return {
        "name": one.name,
        "count": one.count,
        "examples": list(one.examples),
        "meaning": MEANINGS[one.name],
        "is_repairable": one.is_repairable,
        "repaired": max(0, one.count - remaining),
        "remaining": remaining,
    }
