"""`antrean results` and `retry`: what came of a batch, and having another go at what failed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from schemas.job import JobState
from worker.cli.console import note, out, print_json
from worker.cli.job_names import parse_kinds
from worker.cli.listing import complete_batch_id
from worker.cli.nobody import why_nobody_works
from worker.cli.outputs import FORCE_HELP, inputs_of_batch, simulation_of
from worker.clock import SystemClock
from worker.errors import InputError
from worker.reports.batchlines import is_standard_output, write_lines, write_results
from worker.reports.outputs import LONE, Output
from worker.reports.summary import describe_finish_reasons, format_count
from worker.settings import load_settings
from worker.storage.batches import Batch, count_states, fetch_batch, resume_batch, resume_for_workers
from worker.storage.cleaning import clean_text
from worker.storage.engine import Ledger
from worker.storage.job_list import count_open_lone
from worker.storage.migrating import prepare_ledger
from worker.storage.moves import retry_batch
from worker.storage.reading import iterate_batch_outcomes, iterate_lone_outcomes
from worker.storage.tables import MAX_ROWS


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("results", epilog="Example: antrean results batch_0193… -o out.jsonl")(results)
    app.command(
        "retry",
        epilog="Example: antrean retry batch_0193… --failed\n\n"
        "Example: antrean retry batch_0193… --kind timeout --kind server_error",
    )(retry)


def results(
    batch: Annotated[
        str | None,
        typer.Argument(help="The batch's id.", show_default=False, autocompletion=complete_batch_id),
    ] = None,
    lone: Annotated[bool, typer.Option("--lone", help="Those of the jobs of no batch.")] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; - for standard output.")
    ] = Path("-"),
    force: Annotated[bool, typer.Option("--force", help=FORCE_HELP)] = False,
) -> None:
    """Write the results of a batch as OpenAI batch output lines.

    In the order of the input, under the names of the input, failed jobs too; also jobs that another batch made.
    While the batch still runs, what has ended by now is written. A file appears whole or not at all. What is
    missing, because it has not ended or was pruned, is said. A file that is not results, or has some that cannot
    be written again, is overwritten with --force only; what the batch was made from never.

    With --lone, those of the jobs of no batch, the oldest first; one that has no
    custom_id is named by its id.
    """
    if (batch is None) != lone:
        raise InputError("say whose results: a batch's id, or --lone for the jobs of no batch")
    settings = load_settings()
    ledger = prepare_ledger(settings)
    found = None if batch is None else find_named(ledger, batch)
    outcomes = iterate_lone_outcomes(ledger) if found is None else iterate_batch_outcomes(ledger, found.id)
    if is_standard_output(output):
        import sys  # local: the binary stream under the text one

        counts = write_lines(outcomes, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        batch_id, details = (LONE, {}) if found is None else (found.id, found.details)
        target = Output(output, inputs_of_batch(settings, details), is_forced=force)
        target.check_file()
        if (remark := target.check_results(ledger, batch_id, simulation=simulation_of(settings))) is not None:
            note(remark)
        counts = write_results(outcomes, output, check_again=target.check_again)
        note(
            f"{format_count(counts.succeeded)} results and "
            f"{format_count(counts.total - counts.succeeded)} failures in {output}"
        )
    if counts.finish_reasons:
        note(f"finish reasons out of the ordinary: {describe_finish_reasons(counts.finish_reasons)}")
    _mention_missing(ledger, found)


def _mention_missing(ledger: Ledger, batch: Batch | None) -> None:
    """Says which lines are not there: of a batch, or of the lone jobs."""
    with ledger.read() as connection:
        if batch is None:
            left, removed = count_open_lone(connection), 0
        else:
            known = count_states(connection, batch.id)
            left = sum(count for state, count in known.items() if not state.is_final)
            removed = batch.total - sum(known.values())
    if left:
        note(f"{format_count(left, 'job')} have not ended yet: their lines are not there")
    if batch is None:
        return
    if batch.submitted_at_ms is None:
        note("not all of the batch is written down: submit the same input again to complete it")
    elif removed > 0:
        note(
            f"{format_count(removed)} of {format_count(batch.total, 'line')} are missing: their jobs were pruned"
        )


def retry(
    batch: Annotated[str, typer.Argument(help="The batch's id.", autocompletion=complete_batch_id)],
    failed: Annotated[bool, typer.Option("--failed", help="The failed jobs.")] = False,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="The cancelled jobs.")] = False,
    expired: Annotated[bool, typer.Option("--expired", help="The expired jobs.")] = False,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only failures of this kind, such as timeout; may be given several times."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the count as JSON.")] = False,
) -> None:
    """Queue failed, cancelled or expired jobs of a batch again.

    Each starts anew, with all of its attempts. Jobs with a result are never called again. Those of a run that has
    ended are for any worker, until the run is started again.
    """
    chosen = [
        state
        for state, is_chosen in (
            (JobState.FAILED, failed or bool(kind)),
            (JobState.CANCELLED, cancelled),
            (JobState.EXPIRED, expired),
        )
        if is_chosen
    ]
    if not chosen:
        raise InputError("say which jobs to try again: --failed, --cancelled or --expired")
    kinds = [one.value for one in parse_kinds(kind or [])]
    settings = load_settings()
    ledger = prepare_ledger(settings)
    found = find_named(ledger, batch)
    with ledger.read() as connection:
        was_idle = not any(not state.is_final for state in count_states(connection, found.id))
    queued = 0
    while ids := ledger.run(
        lambda connection: retry_batch(
            connection, found.id, states=chosen, kinds=kinds, now_ms=SystemClock().now_ms()
        )
    ):
        queued += len(ids)
    if queued and was_idle:
        # It is held because its run has ended, not because somebody left it.
        leave_to_workers(ledger, found)
    why_nobody = why_nobody_works(ledger, settings, found.endpoint)
    if as_json:
        print_json({"batch_id": found.id, "queued": queued, "is_worked_on": why_nobody is None})
        return
    out.print(f"{format_count(queued)} jobs queued again")
    if queued and found.held_at_ms is not None and not was_idle:
        note("the batch is held since its run was stopped: the same `antrean run` goes on with it")
    elif queued and why_nobody is not None:
        note(why_nobody)


def leave_to_workers(ledger: Ledger, batch: Batch) -> None:
    """Lets jobs of the batch that were queued again go on: also those of a run, until it is run again."""
    step = resume_for_workers if batch.kind == "run" else resume_batch
    while ledger.run(partial(step, batch_id=batch.id)) >= MAX_ROWS:
        pass


def find_named(ledger: Ledger, batch_id: str) -> Batch:
    """The batch with this id, or the only one whose id begins with it. Raises InputError."""
    with ledger.read() as connection:
        batch = fetch_batch(connection, clean_text(batch_id) or "")
    if batch is None:
        raise InputError(f"there is no batch {batch_id}: `antrean status` lists the latest")
    return batch
