"""`antrean run`: from a folder of documents to a file of results, in one command."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from schemas.job import JobState
from worker.broker import broker_address, check_broker, open_client
from worker.cli.console import complain, note, out, print_json
from worker.cli.progress import Display
from worker.cli.tracking import Progress, Tracker
from worker.clock import SystemClock
from worker.embedded.stack import Stack
from worker.errors import ExitCode, InputError
from worker.ids import new_batch_id
from worker.preflight import ask_endpoint, choose_model
from worker.reports.batchlines import check_output, write_results
from worker.reports.summary import format_count, format_seconds
from worker.settings import IN_STACK, SIMULATION, Settings, load_settings
from worker.sources.documents import Document, DocumentSet, find_documents, source_key
from worker.sources.prompt import Prompt
from worker.storage.batches import finish_submission, make_batch
from worker.storage.engine import Ledger
from worker.storage.intake import KnownJob, NewJob
from worker.storage.migrating import prepare_ledger
from worker.storage.moves import retry_jobs
from worker.storage.reading import iterate_outcomes
from worker.submit import identify, make_job, submit_many

_LOOK_S = 0.25
_SIMULATION_KEY = "simulated"


@dataclass(slots=True)
class _Work:
    """The jobs of one run: all of them in the order of the documents, and those still to be done."""

    batch_id: str
    ids: list[str] = field(default_factory=list)
    done: int = 0
    new: int = 0
    again: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def add(self, known: Sequence[KnownJob]) -> None:
        for job in known:
            self.ids.append(job.id)
            self.new += job.is_new
            if job.state is JobState.SUCCEEDED:
                self.done += 1
                continue
            self.open.append(job.id)
            if job.state.is_final:
                self.again.append(job.id)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("run", epilog="Example: antrean run documents --prompt summarise.md -o results.jsonl")(run)


def run(
    documents: Annotated[Path, typer.Argument(help="A document, or a folder of them.", show_default=False)],
    prompt: Annotated[
        Path, typer.Option("--prompt", "-p", help="The prompt: a Jinja2 template with {{ text }}.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the results go: OpenAI batch output lines.")
    ] = Path("results.jsonl"),
    model: Annotated[
        str | None, typer.Option(help="The model; may be left out where the endpoint runs just one.")
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Use a simulated endpoint, with a ledger of its own.")
    ] = False,
    latency: Annotated[float, typer.Option(help="With --simulate: seconds to an answer.")] = 0.5,
    fault_rate: Annotated[float, typer.Option(help="With --simulate: the share of calls that fail.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Queue a job for each document, watch them end, and write their results.

    Typed again, it does only what is not done yet, failed jobs too. Ctrl-C leaves nothing running and loses
    nothing. Ends with 0 when every job succeeded, 1 when some did not.
    """
    started_s = time.monotonic()
    settings = load_settings()
    template = Prompt.load(prompt)
    found = find_documents(documents)
    check_output(output)
    _mention_left_out(found)
    with _interruptible(), _attached(settings, simulate) as stack:
        if simulate:
            settings = _simulated(settings, stack, latency=latency, fault_rate=fault_rate)
        chosen = choose_model(model or template.front.model or settings.model, ask_endpoint(settings))
        _check_documents(found.documents, template, chosen, settings)
        if not simulate and not settings.is_broker_embedded:
            check_broker(open_client(broker_address(settings)))
        ledger = prepare_ledger(settings)
        work = _submit(ledger, settings, documents, found, template, chosen)
        progress = Progress(total=0)
        if work.open:
            _start_worker(stack, settings)
            progress = _follow(ledger, stack, settings, work)
        counts = write_results(iterate_outcomes(ledger, work.ids), output)
        ledger.dispose()
    seconds = time.monotonic() - started_s
    _summarise(work, progress, counts_failed=counts.failed, output=output, seconds=seconds, as_json=as_json)
    if work.done + progress.succeeded < len(work.ids):
        raise typer.Exit(ExitCode.FAILED_JOBS)


def _mention_left_out(found: DocumentSet) -> None:
    if found.skipped:
        note(f"{found.skipped} files are not documents by their name, and were left out")
    if found.empty:
        note(f"{found.empty} documents are empty, and were left out")


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command like Ctrl-C does: in order."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _attached(settings: Settings, simulate: bool) -> Iterator[Stack]:
    """The stack that this run uses; at the end it stops with its last user."""
    stack = Stack.attach(settings.home / SIMULATION if simulate else settings.home)
    try:
        yield stack
    except KeyboardInterrupt:
        note(
            f"stopping: calls in flight have {format_seconds(settings.grace_s)} to end; Ctrl-C again cuts them"
        )
        _leave(stack)
        note("nothing is lost: the same command goes on from here")
        raise
    finally:
        _leave(stack)


def _leave(stack: Stack) -> None:
    while stack.fileno() != -1:
        try:
            stack.leave(wait=True)
        except KeyboardInterrupt:
            stack.hurry()


def _simulated(settings: Settings, stack: Stack, *, latency: float, fault_rate: float) -> Settings:
    argv = [sys.executable, "-P", "-m", "api_client.simulator", "--port", "0"]
    argv += ["--latency", str(latency), "--fault-rate", str(fault_rate), "--retry-after", "0.25"]
    url = stack.ensure_simulator(argv, {"ANTREAN_SIMULATOR_KEY": _SIMULATION_KEY})
    return settings.for_simulation(url, _SIMULATION_KEY)


def _check_documents(documents: Sequence[Document], template: Prompt, model: str, settings: Settings) -> None:
    """Renders every document once before anything is written down: all problems are named at once."""
    template.check(model, settings.allow_zero_temperature)
    problems: list[str] = []
    for document in documents:
        try:
            template.render(
                document, default_model=model, allow_zero_temperature=settings.allow_zero_temperature
            )
        except InputError as exc:
            problems += exc.problems or [str(exc)]
    if problems:
        raise InputError("some documents do not make a request; nothing was queued:", problems)


def _submit(
    ledger: Ledger, settings: Settings, source: Path, found: DocumentSet, template: Prompt, model: str
) -> _Work:
    clock = SystemClock()
    endpoint = settings.endpoint
    root = str(source.resolve())
    batch = ledger.run(
        lambda connection: make_batch(
            connection,
            new_batch_id(),
            kind="run",
            label=f"{source.name} × {Path(template.label).name}",
            endpoint=endpoint,
            idempotency_key=identify("run", root, template.digest, model, endpoint),
            now_ms=clock.now_ms(),
        )
    )
    # Beside the ledger's folder, so that a project that moves keeps the identity of its documents.
    base = settings.home.parent.parent if endpoint == SIMULATION else settings.home.parent

    def jobs() -> Iterator[NewJob]:
        for position, document in enumerate(found.documents, start=1):
            request = template.render(
                document, default_model=model, allow_zero_temperature=settings.allow_zero_temperature
            )
            key = source_key(document, base)
            job = make_job(
                request,
                endpoint=endpoint,
                batch_id=batch.id,
                position=position,
                custom_id=document.relative,
                source_key=key,
                is_bulk=True,
                identity=("run", key),
            )
            yield job

    work = _Work(batch.id)
    submit_many(ledger, jobs(), clock=clock, on_chunk=work.add)
    for start in range(0, len(work.again), 500):
        again = work.again[start : start + 500]
        ledger.run(lambda connection, again=again: retry_jobs(connection, again, now_ms=clock.now_ms()))  # type: ignore[misc]
    ledger.run(lambda connection: finish_submission(connection, batch.id, now_ms=clock.now_ms()))
    return work


def _start_worker(stack: Stack, settings: Settings) -> None:
    if settings.is_broker_embedded:
        stack.ensure_broker()
    argv = [sys.executable, "-P", "-m", "worker.cli", "worker"]
    environment = {**settings.as_environment(), IN_STACK: "1"}
    if not stack.ensure_worker(argv, environment):
        note("a worker with other settings runs for this folder already; it does the work")


def _follow(ledger: Ledger, stack: Stack, settings: Settings, work: _Work) -> Progress:
    tracker = Tracker(ledger, work.open)
    display = Display()
    deaths = 0
    with display.shown():
        while True:
            display.update(tracker.look())
            if tracker.is_done:
                return tracker.progress
            time.sleep(_LOOK_S)
            for event in stack.poll_events():
                if event.get("event") == "service_died":
                    deaths += 1
                    note(f"the {event['service']} died ({event['status']}) and is started again")
            if deaths >= 5 and tracker.progress.done == 0:
                logs = settings.home / "logs"
                raise InputError(f"the worker does not stay up; its log is in {logs}")


def _summarise(
    work: _Work, progress: Progress, *, counts_failed: int, output: Path, seconds: float, as_json: bool
) -> None:
    succeeded = work.done + progress.succeeded
    facts = {
        "batch_id": work.batch_id,
        "jobs": len(work.ids),
        "succeeded": succeeded,
        "failed": len(work.ids) - succeeded,
        "already_done": work.done,
        "failures": dict(progress.failures),
        "prompt_tokens": progress.prompt_tokens,
        "completion_tokens": progress.completion_tokens,
        "seconds": round(seconds, 3),
        "output": str(output),
    }
    if as_json:
        print_json(facts)
        return
    tokens = f"{format_count(progress.prompt_tokens)} prompt + {format_count(progress.completion_tokens)} completion"
    out.print(f"[bold]{format_count(succeeded)}[/] of {format_count(len(work.ids))} jobs succeeded", end="")
    out.print(f" ({format_count(work.done)} were done before)" if work.done else "")
    if counts_failed:
        kinds = ", ".join(f"{kind} {count}" for kind, count in progress.failures.most_common())
        complain(f"{format_count(counts_failed)} jobs failed ({kinds}); the same command tries them again")
    out.print(f"{tokens} tokens · {format_seconds(seconds)} · results in {output}")
