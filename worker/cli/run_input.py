"""What `antrean run` is given: documents and a prompt, or a file of requests. Checked first, then written down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worker.cli.console import note
from worker.cli.left_out import name_left_out
from worker.cli.outputs import inputs_of_run, name_inputs
from worker.cli.request_file import (
    CheckedRequests,
    RequestFile,
    choose_default_model,
    find_requests_batch,
    make_requests_batch,
    open_requests,
    submit_requests,
)
from worker.cli.run_locks import RunLock, home_name
from worker.cli.run_work import (
    Work,
    check_documents,
    find_run,
    make_run,
    submit_run,
    take_up,
)
from worker.errors import InputError
from worker.operations.preflight import EndpointFacts, check_models, choose_model
from worker.reports.batchlines import LINE_START
from worker.reports.outputs import Inputs
from worker.settings import Settings
from worker.sources.documents import DocumentSet, UnreadableDocuments, find_documents
from worker.sources.folder import SUFFIXES
from worker.sources.own_files import OwnFiles
from worker.sources.pipes import is_folder
from worker.sources.prompt import Prompt
from worker.storage.batches import Batch
from worker.storage.engine import Ledger


class CheckedInput(Protocol):
    """Input of which every request is valid."""

    def find_batch(self, ledger: Ledger, settings: Settings) -> Batch | None:
        """The batch of this input, if it was made before."""

    def make_batch(self, ledger: Ledger, settings: Settings) -> Batch:
        """The batch of this input: the same input, model and endpoint are the same batch again."""

    def write_down(self, ledger: Ledger, settings: Settings, batch: Batch, lock: RunLock) -> Work:
        """All jobs of the run: new ones, those that are known, and those that failed before, queued again."""


class RunInput(Protocol):
    """Input that was found."""

    def find_inputs(self, settings: Settings, output: Path) -> Inputs:
        """The files that a run which writes `output` reads, and so never writes over."""

    def check(self, settings: Settings, model: str | None, facts: EndpointFacts) -> CheckedInput:
        """The input with its model. Raises InputError that names every problem, Refused for the model."""


@contextmanager
def open_input(
    documents: Path,
    prompt: Path | None,
    *,
    output: Path,
    settings: Settings,
    skips_unreadable: bool,
    names_all: bool,
) -> Iterator[RunInput]:
    """What is at `documents`: without a prompt, requests. Says what of a folder is left out. Raises InputError."""
    if prompt is not None:
        template = Prompt.load(prompt)
        own = OwnFiles.of_run(settings, prompt=prompt, output=output, output_start=LINE_START)
        try:
            found = find_documents(documents, own=own, skips_unreadable=skips_unreadable)
        except UnreadableDocuments as exc:
            if skips_unreadable or not is_folder(documents):
                raise
            raise InputError(f"{exc} (--skip-unreadable goes on without)", exc.problems) from None
        name_left_out(found.left_out, names_all=names_all)
        yield _Documents(documents, prompt, template, found)
        return
    if is_folder(documents) or documents.suffix.lower() in SUFFIXES:
        raise InputError(
            f"{documents}: documents need a prompt, --prompt FILE; without one, requests are taken, one a line, "
            "from a .jsonl file or a pipe"
        )
    with open_requests(documents) as requests:
        yield _Requests(documents, requests)


@dataclass(frozen=True, slots=True)
class _Documents:
    source: Path
    prompt_file: Path
    prompt: Prompt
    found: DocumentSet

    def find_inputs(self, settings: Settings, output: Path) -> Inputs:
        documents = [one.path for one in self.found.documents]
        return inputs_of_run(settings, self.source, output, prompt=self.prompt_file, documents=documents)

    def check(self, settings: Settings, model: str | None, facts: EndpointFacts) -> CheckedInput:
        chosen = choose_model(model or self.prompt.front.model or settings.model, facts)
        _say_doubts([chosen], facts)
        check_documents(self.found.documents, self.prompt, chosen, settings)
        return _CheckedDocuments(self, chosen)


@dataclass(frozen=True, slots=True)
class _CheckedDocuments:
    input: _Documents
    model: str

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

    def find_inputs(self, settings: Settings, output: Path) -> Inputs:
        return inputs_of_run(settings, self.source, output)

    def check(self, settings: Settings, model: str | None, facts: EndpointFacts) -> CheckedInput:
        checked = self.file.check(settings, choose_default_model(model or settings.model, facts))
        _say_doubts(list(checked.summary.models), facts)
        return _CheckedRequests(self.source, checked)


@dataclass(frozen=True, slots=True)
class _CheckedRequests:
    source: Path
    requests: CheckedRequests

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


def _say_doubts(models: list[str], facts: EndpointFacts) -> None:
    for doubt in check_models(models, facts):
        note(doubt)
