"""`antrean jobs`: which jobs there are, of a batch, of none, or of all the ledger, for people and for programs."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from itertools import islice
from typing import Annotated

import typer

from schemas.job import JobState
from worker.cli.console import note, out, print_text
from worker.cli.listing import complete_batch_id
from worker.clock import SystemClock, describe_until
from worker.errors import InputError
from worker.operations.job_names import parse_kinds
from worker.operations.jobs import list_jobs
from worker.reports.joblines import spell_texts, write_csv, write_json
from worker.reports.summary import format_cost, format_count, format_seconds
from worker.settings import load_settings
from worker.storage.job_list import ListedJob, Texts
from worker.storage.migrating import prepare_ledger
from worker.storage.work_left import HELD_ADVICE
from worker.text.printable import printable, printable_text

_ON_SCREEN = 50


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "jobs",
        epilog="Example: antrean jobs batch_0193… --state failed --with error\n\n"
        "Example: antrean jobs --lone --csv --with prompt,answer > lone.csv",
    )(jobs)


def jobs(
    batch: Annotated[
        str | None,
        typer.Argument(help="A batch's id. Without it the whole ledger.", autocompletion=complete_batch_id),
    ] = None,
    lone: Annotated[bool, typer.Option("--lone", help="Only jobs of no batch.")] = False,
    state: Annotated[
        list[JobState] | None,
        typer.Option(
            metavar="<state>",
            help=f"Only jobs in this state, of {', '.join(JobState)}; may be given several times.",
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Only jobs whose last failure is of this kind, such as timeout; may be given several times."
        ),
    ] = None,
    custom_id: Annotated[
        list[str] | None, typer.Option(help="Only jobs of this name; may be given several times.")
    ] = None,
    with_: Annotated[
        str | None,
        typer.Option("--with", help="Texts to add, separated by commas: prompt, answer, error."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "-n", min=1, help=f"How many at most; on the screen {_ON_SCREEN} by default."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print them as CSV, with a header.")] = False,
) -> None:
    """List jobs, one by one.

    Jobs of a batch are in the order of its input and have its names, also if another batch made them. Jobs of the
    whole ledger, or of no batch, begin with the newest. The kind is that of the last failure, also of a job that
    waits for its next attempt.

    Texts are shown only with --with. A prompt is the request's messages. An error is the message of the last
    failure, and the endpoint's error body if the job has failed. --json and --csv have every job, however many:
    each is printed as it is read.
    """
    if as_json and as_csv:
        raise InputError("--json and --csv do not go together: choose one")
    if batch is not None and lone:
        raise InputError("a lone job is of no batch: give a batch or --lone")
    texts = _parse_texts(with_)
    kinds = parse_kinds(kind or [])
    ledger = prepare_ledger(load_settings())
    found = list_jobs(
        ledger,
        batch=batch,
        is_lone=lone,
        states=state or (),
        kinds=kinds,
        custom_ids=custom_id or (),
        texts=texts,
    )
    if as_csv:
        write_csv(islice(found, limit), sys.stdout.buffer, texts=texts)
    elif as_json:
        write_json(islice(found, limit), sys.stdout.buffer, texts=texts)
    else:
        _print_jobs(found, texts, limit=_ON_SCREEN if limit is None else limit, is_of_batch=batch is not None)


def _parse_texts(given: str | None) -> frozenset[Texts]:
    names = [name.strip() for name in (given or "").split(",") if name.strip()]
    unknown = sorted(set(names) - {text.value for text in Texts})
    if unknown or (given is not None and not names):
        wrong = printable(", ".join(unknown)) or "nothing"
        raise InputError(f"--with knows no text named {wrong}: give prompt, answer, error, or some of them")
    return frozenset(map(Texts, names))


def _print_jobs(
    found: Iterable[ListedJob], texts: frozenset[Texts], *, limit: int, is_of_batch: bool
) -> None:
    """Two lines a job; its id stands alone with its state, so that nothing cuts it however narrow the terminal."""
    jobs_ = iter(found)
    shown = held = 0
    for job in islice(jobs_, limit):
        shown += 1
        held += job.is_held
        out.print(f"{job.id}  {job.state.value}{', held' if job.is_held else ''}")
        out.print(f"  {_describe(job, is_of_batch=is_of_batch)}")
        for label, text in spell_texts(job, texts):
            if text is not None:
                out.say((f"  {label}:", "dim"))
                print_text(textwrap.indent(printable_text(text), "    "))
    if held:
        note(f"{format_count(held, 'job')} held since their run was stopped: {HELD_ADVICE}")
    if not shown:
        note("no job fits")
    elif next(jobs_, None) is not None:
        note(
            f"there are more than these {format_count(shown)}: --limit shows more, --json and --csv have all"
        )


def _describe(job: ListedJob, *, is_of_batch: bool) -> str:
    """`notes/a.txt · timeout · HTTP 504 · 3 attempts`: what is there to be said."""
    parts = [] if job.custom_id is None else [job.custom_id]
    if not is_of_batch:
        parts.append(job.batch_id or "lone")
    parts.append(job.model)
    if job.failure_kind is not None:
        parts.append(job.failure_kind)
        if job.http_status is not None:
            parts.append(f"HTTP {job.http_status}")
    if job.not_before_ms is not None:
        now_ms = SystemClock().now_ms()
        is_due = job.not_before_ms <= now_ms
        parts.append("due now" if is_due else f"waits {describe_until(job.not_before_ms, now_ms)}")
    if job.claims > 1:
        parts.append(format_count(job.claims, "attempt"))
    if job.latency_ms is not None:
        parts.append(format_seconds(job.latency_ms / 1000))
    if job.prompt_tokens is not None and job.completion_tokens is not None:
        parts.append(f"{format_count(job.prompt_tokens + job.completion_tokens)} tokens")
    if job.cost_nano is not None:
        parts.append(format_cost(job.cost_nano))
    if job.finish_reason not in (None, "stop"):
        parts.append(str(job.finish_reason))
    return " · ".join(parts)
