"""`antrean prune`: ended jobs leave the ledger, after a person has seen how many and agreed."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from worker.cli.asking import can_ask, is_confirmed
from worker.cli.console import note, out, print_json
from worker.cli.listing import complete_batch_id
from worker.cli.prune_words import print_survey, survey_facts
from worker.clock import SystemClock, iso_ms
from worker.errors import ExitCode, InputError
from worker.operations.batches import find_whole_batch
from worker.operations.prune import ToPrune, remove, survey
from worker.reports.summary import format_count
from worker.settings import load_settings
from worker.storage.migrating import prepare_ledger
from worker.storage.pruning import Pruned
from worker.text.printable import printable

_AGE = re.compile(r"(\d{1,6})\s*([mhdw])")
_UNIT_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_NOTHING = "nothing was removed"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "prune",
        epilog="Example: antrean prune --older-than 30d --dry-run\n\n"
        "Example: antrean prune --older-than 12w --yes\n\nExample: antrean prune batch_0193…",
    )(prune_ledger)


def prune_ledger(
    batch: Annotated[
        str | None,
        typer.Argument(
            help="A batch's id: its jobs, whatever their age, and no others.",
            autocompletion=complete_batch_id,
            show_default=False,
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", help="An age such as 90m, 36h, 30d or 12w.", show_default=False),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All jobs that have ended, however recently.")
    ] = False,
    even_unfinished: Annotated[
        bool,
        typer.Option(
            "--even-unfinished",
            help="Also ended jobs of batches that have not ended, but never of a live run.",
        ),
    ] = False,
    with_usage: Annotated[
        bool, typer.Option("--with-usage", help="Remove the token counts as well, from `usage`, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove it without asking.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Remove jobs that have ended, with their requests, results and attempts.

    It removes jobs by age (--older-than), of one batch, or all ended ones (--all), for all endpoints of this
    ledger. First it shows their number by batch and state, their size and the tokens that were paid for them, and
    asks. A program needs --yes.

    By age, jobs that a live run or an unfinished batch wants are spared, however old they are. Of one batch, jobs
    that another batch wants, too, stay with that batch. `antrean cancel` ends a batch that will not be finished.
    Jobs that have not ended are never removed.

    Token counts stay unless --with-usage is given, so `antrean usage` still shows what was paid. It works in small
    steps, and workers may run meanwhile. If it is stopped, it goes on when it is called again.

    If the same input is submitted again, removed jobs are called, and paid for, again. Fetch the results first:
    after that, a file that has them is overwritten with --force only. The database's file keeps its size; its free
    space is used again.
    """
    age_ms = _read_what(batch, older_than, everything)
    if not (yes or dry_run or can_ask()):
        raise InputError(
            "there is no terminal to ask for a yes: --yes removes without a question, --dry-run shows what would go"
        )
    before_ms = max(
        0, SystemClock().now_ms() - age_ms
    )  # an age of centuries ends with the calendar of computers
    settings = load_settings()
    ledger = prepare_ledger(settings)
    chosen = None if batch is None else find_whole_batch(ledger, batch)
    what = ToPrune(chosen, before_ms, even_unfinished)
    facts: dict[str, object] = {"before": iso_ms(before_ms)} if chosen is None else {"batch_id": chosen.id}
    if not yes or dry_run:
        found = survey(ledger, settings, what)
        if as_json:
            facts |= survey_facts(ledger, found)
        if dry_run and as_json:
            print_json(facts | {"removed": False})
            return
        print_survey(ledger, found, is_question=not dry_run, with_usage=with_usage)
        if dry_run:
            out.print(_NOTHING)
            return
        if found.total.total and not _is_agreed():
            note(_NOTHING)
            raise typer.Exit(ExitCode.FAILED_JOBS)
    done = remove(ledger, settings, what, with_usage=with_usage)
    facts |= {"jobs": done.removed, "spared": done.spared, "open": done.open}
    if as_json:
        print_json(facts | {"removed": True})
        return
    out.print(f"{format_count(done.removed, 'job')} removed")
    _say_what_stays(done, is_batch=chosen is not None)


def read_age_ms(text: str) -> int:
    """Milliseconds of an age such as `30d`. Raises InputError."""
    found = _AGE.fullmatch(text.strip().lower())
    if found is None:
        raise InputError(
            f"--older-than {printable(text)!r}: give a number and a unit, such as 90m, 36h, 30d or 12w"
        )
    return int(found[1]) * _UNIT_MS[found[2]]


def _read_what(batch: str | None, older_than: str | None, everything: bool) -> int:
    """The age, in milliseconds. Raises InputError where nothing, or more than one thing, says what may go."""
    if batch is not None:
        if older_than is not None or everything:
            raise InputError("a batch is pruned whatever its age: leave --older-than and --all out")
        return 0
    if older_than is None:
        if not everything:
            raise InputError(
                "say what to remove: --older-than 30d, the id of a batch, or --all for all ended jobs"
            )
        return 0
    age_ms = read_age_ms(older_than)
    if age_ms and everything:
        raise InputError("--older-than and --all do not go together: choose one")
    if not age_ms and not everything:
        raise InputError(
            f"--older-than {older_than} would remove all ended jobs, however recent: use --all if you mean that"
        )
    return age_ms


def _is_agreed() -> bool:
    try:
        return is_confirmed("Remove them?")
    except KeyboardInterrupt:
        note(_NOTHING)
        raise


def _say_what_stays(done: Pruned, *, is_batch: bool) -> None:
    if done.spared and is_batch:
        note(f"{format_count(done.spared, 'job')} stay: another batch wants them too")
    elif done.spared:
        note(f"{format_count(done.spared, 'job')} spared: a live run or an unfinished batch wants them")
    if done.open:
        note(f"{format_count(done.open, 'job')} stay: they have not ended")
