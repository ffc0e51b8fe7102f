"""A file of requests becomes a batch: checked whole first, then written down.

The same content for the same endpoint is the same batch again, whether it is submitted or run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from schemas.chat import encode_decoded
from worker.clock import SystemClock
from worker.errors import InputError
from worker.files.names import as_text
from worker.ids import new_batch_id, new_ids
from worker.intake.submit import BULK_PRIORITY, Submitted, identify, submit_many
from worker.operations.model_choice import ModelChoice
from worker.settings import Settings
from worker.sources.jsonl import JsonlSummary, RequestLine, check_requests, read_requests
from worker.sources.pipes import as_file, is_folder, is_stream, name_input
from worker.sources.problems import why
from worker.storage.batches import Batch, find_batch, finish_submission, make_batch
from worker.storage.engine import Ledger, Transaction
from worker.storage.intake import KnownJob, NewJob, find_by_keys

_IDS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class RequestFile:
    """The file to read, what its batch is labelled, and what sentences call it."""

    path: Path
    label: str
    name: str

    def check(self, settings: Settings, models: ModelChoice) -> CheckedRequests:
        """What it holds. Raises InputError that names every problem, or that it is being written to; Refused."""
        default_model = models.choose_default(settings.model)
        seen = _stamp(self.path)
        summary = check_requests(
            self.path,
            default_model=default_model,
            allow_zero_temperature=settings.allow_zero_temperature,
            name=self.name,
        )
        digest = _digest(self.path)
        if _stamp(self.path) != seen:
            raise InputError(
                f"{self.name} changed while it was read: submit it when it is written to its end"
            )
        models.check(list(summary.models))
        return CheckedRequests(self, default_model, summary, digest)


@dataclass(frozen=True, slots=True)
class CheckedRequests:
    """A file without a fault: its `digest` is the SHA-256 (hex) of what was checked."""

    file: RequestFile
    default_model: str | None
    summary: JsonlSummary
    digest: str


@contextmanager
def open_requests(file: Path) -> Iterator[RequestFile]:
    """The file, or the pipe, of requests at `file`. Raises InputError for a folder, and as `as_file` does."""
    if is_folder(file):
        raise InputError(f"{file} is a folder: submit takes a file; for a folder there is `antrean run`")
    _check_is_there(file)
    with as_file(file) as path:
        yield RequestFile(path, name_input(file), as_text(file) if path == file else name_input(file))


def _check_is_there(file: Path) -> None:
    """Raises InputError if nothing can be opened there: before anything is started, and the endpoint is asked."""
    if is_stream(file):
        return
    try:
        file.stat()
    except FileNotFoundError:
        raise InputError(f"No such file: {file}") from None
    except OSError as exc:
        raise InputError(f"{file}: cannot be read ({why(exc)})") from None


def find_requests_batch(ledger: Ledger, settings: Settings, requests: CheckedRequests) -> Batch | None:
    """The batch that an earlier command made of all the same requests; None where none did."""
    with ledger.read() as connection:
        earlier, key = _find_or_name(connection, ("submit", requests.digest, settings.endpoint), requests)
        return earlier or find_batch(connection, key)


def _find_or_name(
    connection: Transaction, identity: tuple[str, ...], requests: CheckedRequests
) -> tuple[Batch | None, str]:
    """The batch of an earlier version, if it is of these requests; and the key of one that this version makes."""
    key = identify(*identity)
    unnamed = requests.summary.first_unnamed
    if unnamed is None:
        return None, key
    # Without the model it is the key of a batch that an earlier version made: of this model or another.
    earlier = find_batch(connection, key)
    if earlier is not None and find_by_keys(connection, [_job_key(earlier, unnamed)]):
        return earlier, key
    return None, identify(*identity, unnamed.model)


def make_requests_batch(
    ledger: Ledger,
    settings: Settings,
    requests: CheckedRequests,
    *,
    is_again: bool = False,
    kind: str = "submit",
    details: Mapping[str, Any] | None = None,
) -> Batch:
    """The batch of this content: a new one, or the one that an earlier command made of all the same requests.

    The content, the endpoint, and the default model where a line has it, make the requests. `kind` and `details` are
    a new one's; one that `is_again` is new whatever was submitted before.
    """
    identity = ("submit", new_batch_id() if is_again else requests.digest, settings.endpoint)

    def work(connection: Transaction) -> Batch:
        earlier, key = _find_or_name(connection, identity, requests)
        return earlier or make_batch(
            connection,
            new_batch_id(),
            kind=kind,
            label=requests.file.label,
            endpoint=settings.endpoint,
            idempotency_key=key,
            details=details,
            now_ms=SystemClock().now_ms(),
        )

    return ledger.run(work)


def submit_requests(
    ledger: Ledger,
    settings: Settings,
    batch: Batch,
    requests: CheckedRequests,
    *,
    on_chunk: Callable[[Sequence[KnownJob]], None] | None = None,
) -> tuple[Submitted, int]:
    """Writes all requests down, and says how many were new, and the batch's number of jobs.

    `on_chunk` gets the jobs in the order of the lines. Raises InputError where the file is not what was checked.
    """
    clock = SystemClock()
    jobs = _jobs(settings, batch, requests)
    submitted = submit_many(ledger, jobs, clock=clock, on_chunk=on_chunk)
    total = ledger.run(partial(finish_submission, batch_id=batch.id, now_ms=clock.now_ms()))
    if submitted.new + submitted.known != requests.summary.count:
        raise InputError(
            f"{requests.file.name} changed while it was submitted: {requests.summary.count:,} requests were checked "
            f"and {submitted.new + submitted.known:,} written down, in {batch.id}"
        )
    return submitted, total


def _jobs(settings: Settings, batch: Batch, requests: CheckedRequests) -> Iterator[NewJob]:
    ids = _ids()
    for line in read_requests(
        requests.file.path,
        default_model=requests.default_model,
        allow_zero_temperature=settings.allow_zero_temperature,
        name=requests.file.name,
    ):
        body, request_hash = encode_decoded(line.body)
        yield NewJob(
            id=next(ids),
            body=body,
            model=line.model,
            request_hash=request_hash,
            endpoint=settings.endpoint,
            idempotency_key=_job_key(batch, line, request_hash),
            batch_id=batch.id,
            position=line.number,
            custom_id=line.custom_id,
            source_key=f"{batch.id}:{line.number}",
            priority=BULK_PRIORITY,
            is_bulk=True,
            expires_at_ms=batch.deadline_ms,
        )


def _job_key(batch: Batch, line: RequestLine, request_hash: str | None = None) -> str:
    """What makes it the same job; the batch stands for the file and the endpoint.

    Keys that rise with the lines fill their index page by page: scattered ones cost half of all the writing.
    """
    hashed = encode_decoded(line.body)[1] if request_hash is None else request_hash
    return f"{batch.id}:{line.number:09}:{hashed[:12]}"


def _ids() -> Iterator[str]:
    while True:
        yield from new_ids(_IDS_AT_ONCE)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written to; None where there is none, which its reader says."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
