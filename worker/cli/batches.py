"""`antrean results` and `retry`: what came of a batch, and having another go at what failed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.failure import FailureKind
from schemas.job import JobState
from worker.cli.console import note, out, print_json
from worker.cli.listing import complete_batch_id
from worker.clock import SystemClock
from worker.errors import InputError
from worker.reports.batchlines import check_output, is_standard_output, write_lines, write_results
from worker.reports.summary import describe_finish_reasons, format_count
from worker.settings import load_settings
from worker.storage.batches import (
    Batch,
    count_states,
    fetch_batch,
    resume_batch,
)
from worker.storage.cleaning import clean_text
from worker.storage.engine import Ledger
from worker.storage.migrating import prepare_ledger
from worker.storage.moves import retry_batch
from worker.storage.reading import iterate_batch_outcomes
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
    batch: Annotated[str, typer.Argument(help="The batch's id.", autocompletion=complete_batch_id)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; - for standard output.")
    ] = Path("-"),
) -> None:
    """Write the results of a batch as OpenAI batch output lines.

    In the order of the input, under the names of the input, failed jobs too; also jobs that another batch made.
    While the batch still runs, what has ended by now is written. A file appears whole or not at all. What is
    missing, because it has not ended or was pruned, is said.
    """
    ledger = prepare_ledger(load_settings())
    found = find_named(ledger, batch)
    if is_standard_output(output):
        import sys  # local: the binary stream under the text one

        counts = write_lines(iterate_batch_outcomes(ledger, found.id), sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        check_output(output)
        counts = write_results(iterate_batch_outcomes(ledger, found.id), output)
        note(
            f"{format_count(counts.succeeded)} results and "
            f"{format_count(counts.total - counts.succeeded)} failures in {output}"
        )
    with ledger.read() as connection:
        known = count_states(connection, found.id)
    if counts.finish_reasons:
        note(f"finish reasons out of the ordinary: {describe_finish_reasons(counts.finish_reasons)}")
    if left := sum(count for state, count in known.items() if not state.is_final):
        note(f"{format_count(left, 'job')} have not ended yet: their lines are not there")
    if found.submitted_at_ms is None:
        note("not all of the batch is written down: submit the same input again to complete it")
    elif (removed := found.total - sum(known.values())) > 0:
        note(
            f"{format_count(removed)} of {format_count(found.total, 'line')} are missing: their jobs were pruned"
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

    Each starts anew, with all of its attempts. Jobs with a result are never called again.
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
    kinds = kind or []
    unknown = sorted(set(kinds) - {one.value for one in FailureKind})
    if unknown:
        known = ", ".join(sorted(one.value for one in FailureKind if one is not FailureKind.INTERRUPTED))
        raise InputError(f"{', '.join(unknown)} is no kind of failure; the kinds are: {known}")
    ledger = prepare_ledger(load_settings())
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
        while ledger.run(lambda connection: resume_batch(connection, found.id)) >= MAX_ROWS:
            pass
    if as_json:
        print_json({"batch_id": found.id, "queued": queued})
        return
    out.print(f"{format_count(queued)} jobs queued again")
    if queued and found.held_at_ms is not None and not was_idle:
        note("the batch is held since its run was stopped: the same `antrean run` goes on with it")


def find_named(ledger: Ledger, batch_id: str) -> Batch:
    """The batch with this id, or the only one whose id begins with it. Raises InputError."""
    with ledger.read() as connection:
        batch = fetch_batch(connection, clean_text(batch_id) or "")
    if batch is None:
        raise InputError(f"there is no batch {batch_id}: `antrean status` lists the latest")
    return batch
