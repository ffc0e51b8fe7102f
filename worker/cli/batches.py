"""`antrean results` and `retry`: the results of a batch, and its ended jobs queued again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.job import JobState
from worker.cli.console import note, out, print_json
from worker.cli.listing import BatchId, complete_batch_id
from worker.cli.outputs import FORCE_HELP, check_results
from worker.errors import InputError
from worker.operations.batches import find_named_batch
from worker.operations.inputs import inputs_of_batch
from worker.operations.job_names import parse_kinds
from worker.operations.results import count_missing, iterate_results
from worker.operations.retry import retry as retry_jobs
from worker.operations.served import why_nobody_works
from worker.reports.batchlines import is_standard_output, write_lines, write_results
from worker.reports.outputs import LONE, Output
from worker.reports.summary import describe_finish_reasons, format_count
from worker.settings import load_settings
from worker.storage.batches import Batch
from worker.storage.engine import Ledger
from worker.storage.migrating import prepare_ledger


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
    lone: Annotated[bool, typer.Option("--lone", help="The results of the jobs of no batch.")] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; - for standard output.")
    ] = Path("-"),
    force: Annotated[bool, typer.Option("--force", help=FORCE_HELP)] = False,
) -> None:
    """Write the results of a batch as OpenAI batch output lines.

    The lines are in the order of the input and have its names. They include failed jobs, and jobs that another
    batch made. While the batch still runs, the results so far are written. The command says what is missing,
    because it has not ended or was pruned. A file is replaced as a whole or not at all. A file that is not results,
    or has some that cannot be written again, is overwritten with --force only; the input of the batch never.

    With --lone it writes the results of the jobs of no batch, the oldest first. A job without a custom_id is named
    by its id.
    """
    if (batch is None) != lone:
        raise InputError("name the results: a batch's id, or --lone for those of the jobs of no batch")
    settings = load_settings()
    ledger = prepare_ledger(settings)
    found = None if batch is None else find_named_batch(ledger, batch)
    outcomes = iterate_results(ledger, found)
    if is_standard_output(output):
        import sys  # local: the binary stream under the text one

        counts = write_lines(outcomes, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        batch_id, details = (LONE, {}) if found is None else (found.id, found.details)
        target = Output(output, inputs_of_batch(settings, details), is_forced=force)
        target.check_file()
        check_results(target, ledger, settings, batch_id)
        counts = write_results(outcomes, output, check_again=target.check_again)
        note(
            f"{format_count(counts.succeeded)} results and "
            f"{format_count(counts.total - counts.succeeded)} failures in {output}"
        )
    if counts.finish_reasons:
        note(f"unusual finish reasons: {describe_finish_reasons(counts.finish_reasons)}")
    _mention_missing(ledger, found)


def _mention_missing(ledger: Ledger, batch: Batch | None) -> None:
    """Says how many lines of results are missing, of a batch or of the lone jobs."""
    missing = count_missing(ledger, batch)
    if missing.open:
        note(f"{format_count(missing.open, 'job')} have not ended yet: their lines are not there")
    if batch is None:
        return
    if batch.submitted_at_ms is None:
        note("not all of the batch is written down: submit the same input again to complete it")
    elif missing.removed > 0:
        total = format_count(batch.total, "line")
        note(f"{format_count(missing.removed)} of {total} are missing: their jobs were pruned")


def retry(
    batch: BatchId,
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

    Each starts anew, with all of its attempts. Jobs with a result are never called again. If the batch is of a run
    that has ended, any worker may take its jobs, until the run is started again.
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
    kinds = parse_kinds(kind or [])
    settings = load_settings()
    ledger = prepare_ledger(settings)
    found = find_named_batch(ledger, batch)
    done = retry_jobs(ledger, found, states=chosen, kinds=kinds)
    why_nobody = why_nobody_works(ledger, settings, found.endpoint)
    if as_json:
        print_json({"batch_id": found.id, "queued": done.queued, "is_worked_on": why_nobody is None})
        return
    out.print(f"{format_count(done.queued, 'job')} queued again")
    if done.queued and done.is_held:
        note("the batch is held since its run was stopped: the same `antrean run` goes on with it")
    elif done.queued and why_nobody is not None:
        note(why_nobody)
