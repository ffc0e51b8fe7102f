"""`antrean submit`: a file of requests becomes a batch; workers do the rest."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from schemas.chat import encode_decoded
from worker.cli.console import note, out, print_json
from worker.clock import SystemClock
from worker.errors import InputError
from worker.ids import new_batch_id, new_ids
from worker.preflight import EndpointFacts, ask_endpoint, check_models, choose_model
from worker.reports.summary import format_count
from worker.settings import Settings, load_settings
from worker.sources.jsonl import check_requests, read_requests
from worker.storage.batches import Batch, finish_submission, make_batch
from worker.storage.engine import Ledger
from worker.storage.intake import NewJob
from worker.storage.migrating import prepare_ledger
from worker.submit import BULK_PRIORITY, Submitted, identify, submit_many

_IDS_AT_ONCE = 500


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "submit",
        epilog="Example: antrean submit requests.jsonl\n\nExample: make-requests | antrean submit - --json",
    )(submit)


def submit(
    file: Annotated[
        Path,
        typer.Argument(help="OpenAI batch lines or bare request bodies, one a line; - for standard input."),
    ],
    model: Annotated[str | None, typer.Option(help="The model of requests that name none.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Submit anew even if this very file was submitted before.")
    ] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not ask the endpoint for its models first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the batch as JSON.")] = False,
) -> None:
    """Write a batch of requests down, for workers to do.

    The whole file is checked first: nothing is queued while a line is wrong. The same file again gives the
    same batch, so that a repeated or interrupted command queues nothing twice.
    """
    settings = load_settings()
    with _as_file(file) as path:
        facts = EndpointFacts(None) if no_check else ask_endpoint(settings)
        default = _default_model(model or settings.model, facts)
        summary = check_requests(
            path, default_model=default, allow_zero_temperature=settings.allow_zero_temperature
        )
        check_models(list(summary.models), facts)
        ledger = prepare_ledger(settings)
        digest = new_batch_id() if again else _digest(path)
        batch = _make_batch(ledger, settings, "standard input" if str(file) == "-" else file.name, digest)
        submitted = _submit(ledger, settings, batch, path, default)
        total = ledger.run(
            lambda connection: finish_submission(connection, batch.id, now_ms=SystemClock().now_ms())
        )
    if as_json:
        print_json(
            {
                "batch_id": batch.id,
                "total": total,
                "new": submitted.new,
                "already_known": submitted.known,
                "models": summary.models,
                "endpoint": settings.endpoint,
            }
        )
        return
    out.print(f"[bold]{batch.id}[/]: {format_count(submitted.new)} requests queued", end="")
    out.print(f", {format_count(submitted.known)} were there before" if submitted.known else "")
    note(f"follow it with `antrean status {batch.id}`; work on it with `antrean worker`")


def _default_model(wanted: str | None, facts: EndpointFacts) -> str | None:
    if wanted is not None:
        return choose_model(wanted, facts)
    if facts.models is not None and len(facts.models) == 1:
        return facts.models[0]
    return None  # then each line must name its own


def _make_batch(ledger: Ledger, settings: Settings, label: str, digest: str) -> Batch:
    return ledger.run(
        lambda connection: make_batch(
            connection,
            new_batch_id(),
            kind="submit",
            label=label,
            endpoint=settings.endpoint,
            idempotency_key=identify("submit", digest, settings.endpoint),
            now_ms=SystemClock().now_ms(),
        )
    )


def _submit(
    ledger: Ledger, settings: Settings, batch: Batch, path: Path, default_model: str | None
) -> Submitted:
    lines = read_requests(
        path, default_model=default_model, allow_zero_temperature=settings.allow_zero_temperature
    )

    def jobs() -> Iterator[NewJob]:
        ids = _ids()
        for line in lines:
            body, request_hash = encode_decoded(line.body)
            yield NewJob(
                id=next(ids),
                body=body,
                model=line.model,
                request_hash=request_hash,
                endpoint=settings.endpoint,
                # What makes it the same job; the batch stands for the file and the endpoint. Keys that rise
                # with the lines fill their index page by page: scattered ones cost half of all the writing.
                idempotency_key=f"{batch.id}:{line.number:09}:{request_hash[:12]}",
                batch_id=batch.id,
                position=line.number,
                custom_id=line.custom_id,
                source_key=f"{batch.id}:{line.number}",
                priority=BULK_PRIORITY,
                is_bulk=True,
            )

    return submit_many(ledger, jobs(), clock=SystemClock())


def _ids() -> Iterator[str]:
    while True:
        yield from new_ids(_IDS_AT_ONCE)


@contextmanager
def _as_file(path: Path) -> Iterator[Path]:
    """A file that can be read twice: standard input is kept in a temporary one meanwhile."""
    if str(path) != "-":
        if path.is_dir():
            raise InputError(f"{path} is a folder: submit takes a file; for a folder there is `antrean run`")
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
