"""The input of a run: documents and a prompt, or a file of requests. Checked whole first, then written down.

Until `write_down`, nothing is queued and the ledger gets no more than an empty batch. A new source of requests is one
more `RunInput`, which `open_input` chooses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worker.operations.errors import PromptMissing
from worker.operations.inputs import inputs_of_run, name_inputs
from worker.operations.model_choice import ModelChoice
from worker.operations.request_file import (
    CheckedRequests,
    RequestFile,
    find_requests_batch,
    make_requests_batch,
    open_requests,
    submit_requests,
)
from worker.operations.run_locks import RunLock, home_name
from worker.operations.run_work import (
    Work,
    check_documents,
    find_run,
    make_run,
    submit_run,
    take_up,
)
from worker.reports.batchlines import LINE_START
from worker.reports.outputs import Inputs
from worker.settings import Settings
from worker.sources.documents import DocumentSet, find_documents
from worker.sources.folder import SUFFIXES
from worker.sources.left_out import LeftOut
from worker.sources.own_files import OwnFiles
from worker.sources.pipes import is_folder
from worker.sources.prompt import Prompt
from worker.storage.batches import Batch
from worker.storage.engine import Ledger


class CheckedInput(Protocol):
    """Input of which every request is valid."""

    @property
    def models(self) -> Collection[str]:
        """The models that its requests name."""

    def find_batch(self, ledger: Ledger, settings: Settings) -> Batch | None:
        """The batch of this input; None where it was not made before."""

    def make_batch(self, ledger: Ledger, settings: Settings) -> Batch:
        """The batch of this input: the same input, model and endpoint are the same batch again."""

    def write_down(self, ledger: Ledger, settings: Settings, batch: Batch, lock: RunLock) -> Work:
        """All jobs of the run: new ones, those that are known, and those that failed before, queued again."""


class RunInput(Protocol):
    """Input that was found. `left_out` is what of a folder is not taken, in the order it was met."""

    @property
    def left_out(self) -> Sequence[LeftOut]: ...

    def find_inputs(self, settings: Settings, output: Path) -> Inputs:
        """The files that a run which writes `output` reads, and so never writes over."""

    def check(self, settings: Settings, models: ModelChoice) -> CheckedInput:
        """The input with its model. Raises InputError that names every problem, Refused for the model."""


@contextmanager
def open_input(
    documents: Path,
    prompt: Path | None,
    *,
    output: Path,
    settings: Settings,
    skips_unreadable: bool,
) -> Iterator[RunInput]:
    """What is at `documents`: without a prompt, requests.

    Raises InputError for input that cannot be used. Two of its kinds are PromptMissing, and UnreadableDocuments for
    documents that cannot be read, unless `skips_unreadable` leaves those of a folder out.
    """
    if prompt is not None:
        template = Prompt.load(prompt)
        own = OwnFiles.of_run(settings, prompt=prompt, output=output, output_start=LINE_START)
        found = find_documents(documents, own=own, skips_unreadable=skips_unreadable)
        yield _Documents(documents, prompt, template, found)
        return
    if is_folder(documents) or documents.suffix.lower() in SUFFIXES:
        raise PromptMissing(
            f"{documents}: without a prompt, requests are taken, one a line, from a .jsonl file or a pipe; documents "
            "need one"
        )
    with open_requests(documents) as requests:
        yield _Requests(documents, requests)


@dataclass(frozen=True, slots=True)
class _Documents:
    source: Path
    prompt_file: Path
    prompt: Prompt
    found: DocumentSet

    @property
    def left_out(self) -> Sequence[LeftOut]:
        return self.found.left_out

    def find_inputs(self, settings: Settings, output: Path) -> Inputs:
        documents = [one.path for one in self.found.documents]
        return inputs_of_run(settings, self.source, output, prompt=self.prompt_file, documents=documents)

    def check(self, settings: Settings, models: ModelChoice) -> CheckedInput:
        chosen = models.choose(self.prompt.front.model, settings.model)
        check_documents(self.found.documents, self.prompt, chosen, settings)
        return _CheckedDocuments(self, chosen)


@dataclass(frozen=True, slots=True)
class _CheckedDocuments:
    input: _Documents
    model: str

    @property
    def models(self) -> Collection[str]:
        return (self.model,)

    def find_batch(self, ledger: Ledger, settings: Settings) -> Batch | None:
        return find_run(ledger, settings, self.input.source, self.input.prompt, self.model)

    def make_batch(self, ledger: Ledger, settings: Settings) -> Batch:
        return make_run(ledger, settings, self.input.source, self.input.prompt, self.model)

    def write_down(self, ledger: Ledger, settings: Settings, batch: Batch, lock: RunLock) -> Work:
        found, prompt = self.input.found, self.input.prompt
        return submit_run(ledger, settings, batch, found, prompt, self.model, lock)


@dataclass(frozen=True, slots=True)
class _Requests:
    source: Path
    file: RequestFile

    @property
    def left_out(self) -> Sequence[LeftOut]:
        return ()

    def find_inputs(self, settings: Settings, output: Path) -> Inputs:
        return inputs_of_run(settings, self.source, output)

    def check(self, settings: Settings, models: ModelChoice) -> CheckedInput:
        return _CheckedRequests(self.source, self.file.check(settings, models))


@dataclass(frozen=True, slots=True)
class _CheckedRequests:
    source: Path
    requests: CheckedRequests

    @property
    def models(self) -> Collection[str]:
        return self.requests.summary.models

    def find_batch(self, ledger: Ledger, settings: Settings) -> Batch | None:
        return find_requests_batch(ledger, settings, self.requests)

    def make_batch(self, ledger: Ledger, settings: Settings) -> Batch:
        # `submit` of the same content is the same batch: whichever comes second goes on with it.
        details = {"home": home_name(settings), **name_inputs(source=self.source)}
        return make_requests_batch(ledger, settings, self.requests, kind="run", details=details)

    def write_down(self, ledger: Ledger, settings: Settings, batch: Batch, lock: RunLock) -> Work:
        work = Work(batch.id)
        submit_requests(ledger, settings, batch, self.requests, on_chunk=work.add)
        take_up(ledger, work)
        return work
