"""`antrean submit`: a file of requests becomes a batch; workers do the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.cli.console import note, out, print_json
from worker.cli.destination import announce_endpoints, warn_of_left_jobs
from worker.cli.expected import say_expected
from worker.cli.last_words import said_of_submission
from worker.cli.listing import iso
from worker.cli.shared_options import Budget, Deadline, Weight
from worker.clock import SystemClock
from worker.operations.batches import count_jobs
from worker.operations.budgets import check_prices, read_budget, set_budget
from worker.operations.deadlines import apply_deadline, note_batch_deadline, parse_deadline
from worker.operations.endpoints import ask_endpoints, not_asked
from worker.operations.expected_end import expect_end_of
from worker.operations.inputs import name_inputs
from worker.operations.model_choice import ModelChoice
from worker.operations.request_file import (
    make_requests_batch,
    open_requests,
    submit_requests,
)
from worker.operations.run_holding import keep_from_runs
from worker.operations.served import why_nobody_works
from worker.operations.weights import read_weight, set_batch_weight
from worker.reports.summary import format_count
from worker.settings import load_settings
from worker.storage.migrating import prepare_ledger


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "submit",
        epilog="Example: antrean submit requests.jsonl\n\nExample: make-requests | antrean submit - --json",
    )(submit)


def submit(
    file: Annotated[
        Path,
        typer.Argument(
            help="OpenAI batch lines or bare bodies, one a line: a file, a pipe, - for standard input."
        ),
    ],
    model: Annotated[str | None, typer.Option(help="The model of requests that name none.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Submit a new batch, even if the same file was submitted before.")
    ] = False,
    deadline: Deadline = None,
    budget: Budget = None,
    weight: Weight = None,
    no_check: Annotated[
        bool,
        typer.Option("--no-check", help="Do not check the endpoint: send nothing, only write the batch."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the batch as JSON.")] = False,
) -> None:
    """Write a batch of requests to the ledger; workers send them.

    First the endpoint is checked, so that a wrong address, key or model is reported before anything is queued. It
    is asked for its models, and its chat address gets a request without messages, which no endpoint completes and
    which costs nothing. With --no-check nothing is sent; then only workers call the endpoint.

    The whole file is checked, too: if a line is wrong, nothing is queued. The same content again, for the same
    endpoint and with the same model for lines that name none, is the same batch. So a repeated or interrupted
    command queues nothing twice. A custom_id is only a name: the same one in another file is another job. Twice in
    one file it is refused.

    After its --deadline no job is called: what has no result by then is expired. At its --budget the batch waits
    until `antrean budget` raises it. Batches that are worked on at the same time share the tokens by their --weight.
    """
    settings = load_settings()
    limit = None if budget is None else read_budget(budget)
    share = None if weight is None else read_weight(weight)
    until_ms = None if deadline is None else parse_deadline(deadline, now_ms=SystemClock().now_ms())
    with open_requests(file) as source:
        announce_endpoints(settings)
        answers = not_asked(settings) if no_check else ask_endpoints(settings)
        for problem in answers.describe_passed_by():
            note(problem)
        requests = source.check(settings, ModelChoice(model, answers.models, on_doubt=note))
        if limit is not None:
            check_prices(limit, requests.summary.models, settings)
        ledger = prepare_ledger(settings)
        warn_of_left_jobs(ledger, settings)
        batch = make_requests_batch(
            ledger, settings, requests, is_again=again, details=name_inputs(source=file)
        )
        set_budget(ledger, settings, batch, limit)
        set_batch_weight(ledger, batch, share)
        batch = note_batch_deadline(ledger, batch, until_ms)
        keep_from_runs(ledger, batch)
        with said_of_submission(ledger, batch.id, requests.summary.count):
            submitted, total = submit_requests(ledger, settings, batch, requests)
        apply_deadline(ledger, batch)
        is_open = any(not state.is_final for state in count_jobs(ledger, batch.id))
        expected = expect_end_of(ledger, batch) if is_open else None
        why_nobody = why_nobody_works(ledger, settings, batch.endpoint) if is_open else None
    if as_json:
        print_json(
            {
                "batch_id": batch.id,
                "total": total,
                "new": submitted.new,
                "already_known": submitted.known,
                "models": requests.summary.models,
                "endpoint": settings.endpoint,
                "is_worked_on": is_open and why_nobody is None,
                "expected_end": None if expected is None else iso(expected.end_ms),
                "deadline": None if batch.deadline_ms is None else iso(batch.deadline_ms),
                "misses_deadline": None if expected is None else expected.misses(batch.deadline_ms),
            }
        )
        return
    before = f", {format_count(submitted.known)} were there before" if submitted.known else ""
    out.say((batch.id, "bold"), f": {format_count(submitted.new, 'request')} queued{before}")
    note(f"follow it with `antrean status {batch.id}`")
    if expected is not None and why_nobody is None:
        say_expected(expected, batch.deadline_ms)
    if why_nobody is not None:
        note(why_nobody)
