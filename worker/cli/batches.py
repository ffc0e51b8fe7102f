"""`antrean status`, `results` and `retry`: looking at a batch, and having another go at what failed."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas.job import JobState
from worker.cli.console import note, out, print_json
from worker.cli.job_names import parse_kinds
from worker.cli.listing import complete_batch_id
from worker.cli.nobody import why_nobody_works
from worker.cli.outputs import FORCE_HELP, inputs_of_batch, simulation_of
from worker.cli.pausing import describe_pause
from worker.clock import SystemClock
from worker.errors import InputError
from worker.gate_state import GateWatch, describe_gate, gate_facts
from worker.reports.batchlines import is_standard_output, write_lines, write_results
from worker.reports.outputs import Output
from worker.reports.summary import describe_finish_reasons, format_count
from worker.settings import load_settings
from worker.storage.batches import (
    Batch,
    BatchStatus,
    count_states,
    fetch_batch,
    fetch_batches,
    fetch_status,
    resume_batch,
)
from worker.storage.cleaning import clean_text
from worker.storage.engine import Ledger
from worker.storage.job_list import count_open_lone
from worker.storage.migrating import prepare_ledger
from worker.storage.moves import retry_batch
from worker.storage.pauses import fetch_pauses
from worker.storage.reading import fetch_trouble, iterate_batch_outcomes, iterate_lone_outcomes
from worker.storage.tables import MAX_ROWS
from worker.storage.workers import fetch_workers

_LATEST = 10


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("status", epilog="Example: antrean status\n\nExample: antrean status batch_0193… --json")(
        status
    )
    app.command("results", epilog="Example: antrean results batch_0193… -o out.jsonl")(results)
    app.command(
        "retry",
        epilog="Example: antrean retry batch_0193… --failed\n\n"
        "Example: antrean retry batch_0193… --kind timeout --kind server_error",
    )(retry)


def status(
    batch: Annotated[
        str | None,
        typer.Argument(help="A batch's id; all of the ledger without it.", autocompletion=complete_batch_id),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show where a batch stands, or the whole ledger.

    Of a batch: its status, its jobs by state, its failures by kind, its results that did not end in the ordinary
    way by finish_reason (length: cut off; content_filter), and its tokens. Without a batch: all jobs by state, the
    latest batches, the workers, what is paused, and until when a shut gate keeps jobs waiting.
    """
    settings = load_settings()
    ledger = prepare_ledger(settings)
    if batch is not None:
        with ledger.read() as connection:
            found = fetch_status(connection, _find(ledger, batch))
        print_json(_facts(found)) if as_json else _print_batch(found)
        return
    with ledger.read() as connection:
        counts = count_states(connection)
        latest = [fetch_status(connection, one) for one in fetch_batches(connection, limit=_LATEST)]
        workers = fetch_workers(connection)
        pauses = fetch_pauses(connection)
        trouble = fetch_trouble(connection, now_ms=SystemClock().now_ms())
    gate, now_ms = GateWatch(settings).fetch(), SystemClock().now_ms()
    if as_json:
        print_json(
            {
                "jobs": _named(counts),
                "batches": [_facts(one) for one in latest],
                "workers": [
                    {
                        "id": one.id,
                        "hostname": one.hostname,
                        "pid": one.pid,
                        "slots": one.slots,
                        "running": one.running,
                        "beat_at": _iso(one.beat_at_ms),
                    }
                    for one in workers
                ],
                "paused": [
                    {"endpoint": one.endpoint, "paused_at": _iso(one.paused_at_ms), "reason": one.reason}
                    for one in pauses
                ],
                "gate": gate_facts(settings.endpoint, gate, now_ms=now_ms),
                "waiting_for": trouble,
            }
        )
        return
    if not counts:
        note("the ledger is empty: `antrean run` or `antrean submit` fills it")
    out.print(_states_line(counts))
    if latest:
        for one in latest:
            done, failed, open_ = _sums(one)
            # The id stands alone on its line: nothing cuts it, however narrow the terminal.
            out.say((one.batch.id, "bold"), f" {one.status}{_held(one)}")
            out.say(
                f"  {one.batch.label} · {format_count(done)} done · {format_count(failed)} failed · "
                f"{format_count(open_)} open · {format_count(one.total_tokens)} tokens"
            )
    for one_worker in workers:
        age_s = time.time() - one_worker.beat_at_ms / 1000
        out.print(
            f"worker {one_worker.hostname}:{one_worker.pid} · {one_worker.running} of {one_worker.slots} slots"
            f" · last beat {age_s:.0f} s ago"
        )
    for one_pause in pauses:
        out.say((describe_pause(one_pause), "yellow"), ": `antrean resume` goes on")
    if gate is not None:
        out.say(("gate", "yellow"), f" {describe_gate(gate, now_ms=now_ms)}")
    if trouble is not None and not pauses:
        out.say(("waiting", "yellow"), f" {trouble}")


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
    found = None if batch is None else _find(ledger, batch)
    outcomes = iterate_lone_outcomes(ledger) if found is None else iterate_batch_outcomes(ledger, found.id)
    if is_standard_output(output):
        import sys  # local: the binary stream under the text one

        counts = write_lines(outcomes, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        batch_id, details = (None, {}) if found is None else (found.id, found.details)
        target = Output(output, inputs_of_batch(settings, details), is_forced=force)
        target.check_file()
        if (remark := target.check_results(ledger, batch_id, simulation=simulation_of(settings))) is not None:
            note(remark)
        counts = write_results(outcomes, output)
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
    kinds = [one.value for one in parse_kinds(kind or [])]
    settings = load_settings()
    ledger = prepare_ledger(settings)
    found = _find(ledger, batch)
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
    why_nobody = why_nobody_works(ledger, settings, found.endpoint)
    if as_json:
        print_json({"batch_id": found.id, "queued": queued, "is_worked_on": why_nobody is None})
        return
    out.print(f"{format_count(queued)} jobs queued again")
    if queued and found.held_at_ms is not None and not was_idle:
        note("the batch is held since its run was stopped: the same `antrean run` goes on with it")
    elif queued and why_nobody is not None:
        note(why_nobody)


def _find(ledger: Ledger, batch_id: str) -> Batch:
    with ledger.read() as connection:
        batch = fetch_batch(connection, clean_text(batch_id) or "")
    if batch is None:
        raise InputError(f"there is no batch {batch_id}: `antrean status` lists the latest")
    return batch


def _print_batch(found: BatchStatus) -> None:
    batch = found.batch
    out.say(
        (batch.id, "bold"),
        f" {found.status}{_held(found)} · {batch.kind} of {batch.label} · {_iso(batch.created_at_ms)}",
    )
    if _held(found):
        note("held since its run was stopped: the same `antrean run` goes on with it")
    if batch.submitted_at_ms is None:
        note("not all of it is written down: submit the same input again to complete it")
    out.print(_states_line(found.counts))
    for kind, count in found.failures.items():
        out.print(f"  failed: {format_count(count)} × {kind}")
    for reason, count in found.finish_reasons.items():
        out.print(f"  finish reason: {format_count(count)} × {reason}")
    out.print(
        f"{format_count(found.prompt_tokens)} prompt + {format_count(found.completion_tokens)} completion "
        f"= {format_count(found.total_tokens)} tokens"
    )


def _held(found: BatchStatus) -> str:
    is_open = any(not state.is_final for state in found.counts)
    return ", held" if found.batch.held_at_ms is not None and is_open else ""


def _facts(found: BatchStatus) -> dict[str, Any]:
    batch = found.batch
    return {
        "batch_id": batch.id,
        "kind": batch.kind,
        "label": batch.label,
        "endpoint": batch.endpoint,
        "status": found.status,
        "held": bool(_held(found)),
        "total": sum(found.counts.values()),
        "jobs": _named(found.counts),
        "failures": dict(found.failures),
        "finish_reasons": dict(found.finish_reasons),
        "usage": {
            "prompt_tokens": found.prompt_tokens,
            "completion_tokens": found.completion_tokens,
            "total_tokens": found.total_tokens,
        },
        "created_at": _iso(batch.created_at_ms),
        "submitted_at": None if batch.submitted_at_ms is None else _iso(batch.submitted_at_ms),
    }


def _named(counts: Any) -> dict[str, int]:
    return {state.value: counts.get(state, 0) for state in JobState}


def _states_line(counts: Any) -> str:
    shown = [f"{format_count(counts[state])} {state.value}" for state in JobState if counts.get(state)]
    return " · ".join(shown) or "no jobs"


def _sums(found: BatchStatus) -> tuple[int, int, int]:
    done = found.counts.get(JobState.SUCCEEDED, 0)
    open_ = sum(count for state, count in found.counts.items() if not state.is_final)
    return done, sum(found.counts.values()) - done - open_, open_


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
