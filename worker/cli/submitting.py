"""`antrean submit`: a file of requests becomes a batch; workers do the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Connection

from schemas.chat import encode_decoded
from worker.cli.console import note, out, print_json
from worker.cli.last_words import said_of_submission
from worker.clock import SystemClock
from worker.errors import InputError
from worker.ids import new_batch_id, new_ids
from worker.preflight import NOT_ASKED, EndpointFacts, ask_endpoint, check_models, choose_model
from worker.reports.summary import format_count
from worker.settings import Settings, load_settings
from worker.sources.jsonl import JsonlSummary, RequestLine, check_requests, read_requests
from worker.sources.pipes import as_file, name_input
from worker.storage.batches import Batch, find_batch, finish_submission, make_batch
from worker.storage.engine import Ledger
from worker.storage.intake import NewJob, find_by_keys
from worker.storage.migrating import prepare_ledger
from worker.submit import BULK_PRIORITY, Submitted, identify, submit_many

_IDS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class _Source:
    """The file to read, what its batch is labelled, and what sentences call it."""

    path: Path
    label: str
    name: str


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
        bool, typer.Option("--again", help="Submit anew even if this very file was submitted before.")
    ] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Ask the endpoint nothing first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the batch as JSON.")] = False,
) -> None:
    """Write a batch of requests down, for workers to do.

    The whole file is checked first: nothing is queued while a line is wrong. The same content again, for the same
    endpoint and with the same model for lines that name none, gives the same batch, so that a repeated or
    interrupted command queues nothing twice. A custom_id names a request and makes it no other's double: the same
    id in another file is another job; twice in one file it is refused.
    """
    settings = load_settings()
    if file.is_dir():
        raise InputError(f"{file} is a folder: submit takes a file; for a folder there is `antrean run`")
    with as_file(file) as path:
        source = _Source(path, name_input(file), str(file) if path == file else name_input(file))
        facts = NOT_ASKED if no_check else ask_endpoint(settings)
        default = _default_model(model or settings.model, facts)
        seen = _look(path)
        summary = check_requests(
            path,
            default_model=default,
            allow_zero_temperature=settings.allow_zero_temperature,
            name=source.name,
        )
        for doubt in check_models(list(summary.models), facts):
            note(doubt)
        digest = new_batch_id() if again else _digest(path)
        if _look(path) != seen:
            raise InputError(
                f"{source.name} changed while it was read: submit it when it is written to its end"
            )
        ledger = prepare_ledger(settings)
        batch = _make_batch(ledger, settings, source.label, digest, summary)
        with said_of_submission(ledger, batch.id, summary.count):
            submitted = _submit(ledger, settings, batch, source, default)
        total = ledger.run(
            lambda connection: finish_submission(connection, batch.id, now_ms=SystemClock().now_ms())
        )
        if submitted.new + submitted.known != summary.count:
            raise InputError(
                f"{source.name} changed while it was submitted: {summary.count:,} requests were checked and "
                f"{submitted.new + submitted.known:,} written down, in {batch.id}"
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
    out.say((batch.id, "bold"), f": {format_count(submitted.new)} requests queued", end="")
    out.print(f", {format_count(submitted.known)} were there before" if submitted.known else "")
    note(f"follow it with `antrean status {batch.id}`; work on it with `antrean worker`")


def _default_model(wanted: str | None, facts: EndpointFacts) -> str | None:
    if wanted is not None:
        return choose_model(wanted, facts)
    if facts.models is not None and len(facts.models) == 1:
        return facts.models[0]
    return None  # then each line must name its own


def _make_batch(ledger: Ledger, settings: Settings, label: str, digest: str, summary: JsonlSummary) -> Batch:
    """The batch of this content: a new one, or the one that an earlier command made of all the same requests.

    The content, the endpoint, and the default model where a line has it, make the requests.
    """
    identity = ("submit", digest, settings.endpoint)
    unnamed = summary.first_unnamed

    def work(connection: Connection) -> Batch:
        key = identify(*identity)
        if unnamed is not None:
            # Without the model it is the key of a batch that an earlier version made: of this model or another.
            earlier = find_batch(connection, key)
            if earlier is not None and find_by_keys(connection, [_job_key(earlier, unnamed)]):
                return earlier
            key = identify(*identity, unnamed.model)
        return make_batch(
            connection,
            new_batch_id(),
            kind="submit",
            label=label,
            endpoint=settings.endpoint,
            idempotency_key=key,
            now_ms=SystemClock().now_ms(),
        )

    return ledger.run(work)


def _job_key(batch: Batch, line: RequestLine, request_hash: str | None = None) -> str:
    """What makes it the same job; the batch stands for the file and the endpoint.

    Keys that rise with the lines fill their index page by page: scattered ones cost half of all the writing.
    """
    hashed = encode_decoded(line.body)[1] if request_hash is None else request_hash
    return f"{batch.id}:{line.number:09}:{hashed[:12]}"


def _submit(
    ledger: Ledger, settings: Settings, batch: Batch, source: _Source, default_model: str | None
) -> Submitted:
    lines = read_requests(
        source.path,
        default_model=default_model,
        allow_zero_temperature=settings.allow_zero_temperature,
        name=source.name,
    )
    endpoint = settings.endpoint

    def jobs() -> Iterator[NewJob]:
        ids = _ids()
        for line in lines:
            body, request_hash = encode_decoded(line.body)
            yield NewJob(
                id=next(ids),
                body=body,
                model=line.model,
                request_hash=request_hash,
                endpoint=endpoint,
                idempotency_key=_job_key(batch, line, request_hash),
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


def _look(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written to; None where there is none, which its reader says."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
