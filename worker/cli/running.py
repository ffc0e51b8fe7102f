"""`antrean run`: from a folder of documents to a file of results, in one command."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from worker.broker.client import broker_address, check_broker, open_client
from worker.cli.console import note
from worker.cli.destination import announce_endpoints, warn_of_left_jobs
from worker.cli.expected import DeadlineWatch, say_expected
from worker.cli.following import follow_run
from worker.cli.last_words import LastWords
from worker.cli.left_out import name_left_out
from worker.cli.outputs import FORCE_HELP, check_results
from worker.cli.run_summary import print_summary
from worker.cli.shared_options import Budget, Deadline, Weight
from worker.cli.typed import name_command
from worker.clock import SystemClock
from worker.errors import ExitCode, InputError
from worker.operations.budgets import check_prices, read_budget, set_budget
from worker.operations.capacity import make_room
from worker.operations.deadlines import apply_deadline, note_batch_deadline, parse_deadline
from worker.operations.endpoints import ask_endpoints, not_asked
from worker.operations.expected_end import expect_end_of
from worker.operations.gates import GateWatch
from worker.operations.model_choice import ModelChoice
from worker.operations.run_holding import hold_abandoned, worked_on
from worker.operations.run_input import RunInput, open_input
from worker.operations.run_work import Work
from worker.operations.tracking import Progress
from worker.operations.weights import read_weight, set_batch_weight
from worker.prices.book import open_prices
from worker.reports.batchlines import is_standard_output
from worker.reports.growing import GrowingResults
from worker.reports.outputs import Output
from worker.reports.summary import format_count, format_seconds
from worker.settings import IN_STACK, SIMULATION, Settings, load_settings
from worker.sources.documents import UnreadableDocuments
from worker.sources.pipes import is_folder
from worker.stack.attachment import Stack
from worker.storage.batches import Batch
from worker.storage.engine import Ledger
from worker.storage.migrating import prepare_ledger

_SIMULATION_KEY = "simulated"
_DEFAULT_OUTPUT = "results.jsonl"


def _check_patience(value: float | None) -> float | None:
    if value is not None and not value >= 0:
        raise typer.BadParameter("it is a number of seconds, 0 or more")
    return value


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "run",
        epilog="Example: antrean run documents --prompt summarise.md -o results.jsonl\n\n"
        "Example: antrean run documents -p summarise.md --simulate --fault-rate 0.2\n\n"
        "Example: antrean run requests.jsonl -o results.jsonl",
    )(run)


def run(
    documents: Annotated[
        Path,
        typer.Argument(
            help="A document, or a folder of them; without --prompt a file of requests, a pipe, or -.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        Path | None,
        typer.Option(
            "--prompt", "-p", help="The prompt: a Jinja2 template with {{ text }}.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where the results go: OpenAI batch output lines.",
            show_default=_DEFAULT_OUTPUT,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help=FORCE_HELP)] = False,
    model: Annotated[
        str | None, typer.Option(help="The model. Not needed if the endpoint runs just one.")
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Use a simulated endpoint, with a ledger of its own.")
    ] = False,
    latency: Annotated[float, typer.Option(help="With --simulate: seconds until an answer.")] = 0.5,
    fault_rate: Annotated[float, typer.Option(help="With --simulate: the share of calls that fail.")] = 0.0,
    patience: Annotated[
        float | None,
        typer.Option(
            callback=_check_patience,
            help="End after so many seconds at a shut gate in which no job has ended; the jobs are kept.",
            show_default="wait on",
        ),
    ] = None,
    deadline: Deadline = None,
    budget: Budget = None,
    weight: Weight = None,
    no_check: Annotated[
        bool,
        typer.Option(
            "--no-check", help="Do not check the endpoint before the first job. A model must be named."
        ),
    ] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out documents that cannot be read.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Name every file of the folder that is left out.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Queue a job for each document, and write their results.

    Without --prompt the input is a file of requests, as for `antrean submit`: OpenAI batch lines, or bare bodies.
    The same content is the same batch with either command.

    These files of a folder are left out, and named: hidden files, files whose names are not those of documents,
    links that lead out of the folder, and files of the run or of antrean (the prompt, the output, earlier results,
    a home, the files of keys). A document that cannot be read stops the command, unless --skip-unreadable is given.

    It starts what it needs (a broker, a worker), shows its progress, and stops what it started.

    Runs in one home with the same settings share a worker. A run with other settings (another endpoint, key or
    database) has its own worker, with its own log (`logs/worker-2.log`), until the last such run ends.

    If the same run is started again, it calls only the jobs that have no result yet, also failed ones. Ctrl-C loses
    nothing, and leaves no process running. The exit code is 0 if every job succeeded, 1 if some did not or a line
    is missing, and 6 if --patience was spent at a shut gate: nothing is lost then either.

    Runs may share documents, also at the same time: each document is called once, and each run gets the result
    under its own name. Until a run ends, its results are in the output's name with .part, in order, up to the first
    document that is not done.

    After its --deadline no job is called: what has no result by then is expired. At its --budget it waits until
    `antrean budget` raises it. Batches that are worked on at the same time share the tokens by their --weight.

    An input is never overwritten. A file that is not results is overwritten with --force only; results of another
    batch only with --force, or if --output names the file.
    """
    started_s = time.monotonic()
    given = settings = load_settings()
    limit = None if budget is None else read_budget(budget)
    share = None if weight is None else read_weight(weight)
    until_ms = None if deadline is None else parse_deadline(deadline, now_ms=SystemClock().now_ms())
    # Before anything is written: its worker would be refused.
    make_room(settings)
    open_prices(settings)
    if not simulate:
        settings.require_lasting_files()
    path = Path(_DEFAULT_OUTPUT) if output is None else output
    is_printed = is_standard_output(path)
    last_words = LastWords()
    with ExitStack() as begun:
        begun.enter_context(_interruptible())
        found = begun.enter_context(
            _opened(
                documents,
                prompt,
                output=Path("-") if is_printed else path,
                settings=settings,
                skips_unreadable=skip_unreadable,
            )
        )
        name_left_out(found.left_out, names_all=verbose)
        target: Output | None = None
        if not is_printed:
            inputs = found.find_inputs(settings, path)
            target = Output(path, inputs, is_named=output is not None, is_forced=force)
            target.check_file()
        stack = begun.enter_context(_attached(settings, simulate, last_words))
        if simulate:
            settings = _simulated(settings, stack, latency=latency, fault_rate=fault_rate)
        antrean = name_command(settings, given)
        announce_endpoints(settings)
        answers = not_asked(settings) if no_check else ask_endpoints(settings)
        for problem in (*answers.describe_refused_keys(), *answers.describe_passed_by()):
            note(problem)
        checked = found.check(settings, ModelChoice(model, answers.models, on_doubt=note))
        if limit is not None:
            check_prices(limit, checked.models, settings)
        if not simulate and not settings.is_broker_embedded:
            check_broker(open_client(broker_address(settings)))
        ledger = prepare_ledger(settings)
        warn_of_left_jobs(ledger, settings)
        if target is not None:
            target.say_commands_as(antrean)
            earlier = checked.find_batch(ledger, settings)
            check_results(target, ledger, settings, None if earlier is None else earlier.id)
        batch = note_batch_deadline(ledger, checked.make_batch(ledger, settings), until_ms)
        with worked_on(ledger, settings, batch) as lock:
            _mention_held(hold_abandoned(ledger, settings), antrean)
            last_words.are_of(ledger, batch.id)
            set_budget(ledger, settings, batch, limit)
            set_batch_weight(ledger, batch, share)
            work = checked.write_down(ledger, settings, batch, lock)
            apply_deadline(ledger, batch)
            progress = Progress(total=len(work.ids), succeeded=work.done)
            with _growing(ledger, work, target, antrean) as growing:
                if work.open:
                    if work.done:
                        note(f"{format_count(work.done)} of {format_count(len(work.ids))} were done before")
                    _start_worker(stack, settings)
                    if (expected := expect_end_of(ledger, batch)) is not None:
                        say_expected(expected, batch.deadline_ms)
                    gate = GateWatch(settings, models=checked.models)
                    if answers.is_up:
                        # An endpoint has answered: no job has to wait for the end of its gate.
                        gate.wake(ledger, answers.accepted)
                    watch = DeadlineWatch(batch.deadline_ms, began_s=time.monotonic())
                    follow_run(
                        ledger, stack, settings, work, progress, growing, gate, patience, watch, antrean
                    )
                # While the batch is not held: what it wants is not pruned.
                counts = growing.finish()
        ledger.dispose()
    seconds = time.monotonic() - started_s
    shown = Path("-") if target is None else path
    print_summary(work, progress, counts, output=shown, seconds=seconds, as_json=as_json)
    if counts.succeeded < len(work.ids):
        raise typer.Exit(ExitCode.FAILED_JOBS)


@contextmanager
def _opened(
    documents: Path, prompt: Path | None, *, output: Path, settings: Settings, skips_unreadable: bool
) -> Iterator[RunInput]:
    """The input. Where documents cannot be read, the error names the option that leaves them out, if one does."""
    with ExitStack() as opened:
        try:
            found = opened.enter_context(
                open_input(
                    documents, prompt, output=output, settings=settings, skips_unreadable=skips_unreadable
                )
            )
        except UnreadableDocuments as exc:
            if skips_unreadable or not is_folder(documents):
                raise
            raise InputError(f"{exc} (--skip-unreadable goes on without)", exc.problems) from None
        yield found


@contextmanager
def _growing(ledger: Ledger, work: Work, target: Output | None, antrean: str) -> Iterator[GrowingResults]:
    """The results of the run, which grow while inside. A run that ends early says where its results are."""
    if target is not None:
        target.belong_to(work.batch_id)
    growing = GrowingResults(ledger, work.ids, None if target is None else target.path, output=target)
    try:
        yield growing
    finally:
        if growing.part is not None:
            note(
                f"the first results, without a gap, are in {growing.part}; `{antrean} results {work.batch_id}` has all"
            )
        growing.close()


def _mention_held(held: list[tuple[Batch, int]], antrean: str) -> None:
    for batch, count in held:
        note(
            f"{format_count(count, 'job')} of {batch.label} are left from an earlier run: the same command goes on "
            f"with them, `{antrean} cancel {batch.id}` cancels them"
        )


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command in order, as Ctrl-C does. A SIGHUP that is ignored stays so (`nohup`)."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (
        [signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        else [signal.SIGTERM, signal.SIGHUP]
    )
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _attached(settings: Settings, simulate: bool, last_words: LastWords) -> Iterator[Stack]:
    """The stack that this run uses; at the end it stops with its last user."""
    home = settings.home / SIMULATION if simulate else settings.home
    stack = Stack.attach(home, has_broker=simulate or settings.is_broker_embedded)
    try:
        yield stack
    except KeyboardInterrupt:
        note(
            f"stopping: calls in flight have up to {format_seconds(settings.grace_s)} to end; Ctrl-C again cuts them"
        )
        _leave(stack)
        last_words.say()
        raise
    finally:
        _leave(stack)


def _leave(stack: Stack) -> None:
    while stack.fileno() != -1:
        try:
            stack.detach(wait=True)
        except KeyboardInterrupt:
            note("cutting the calls in flight …")
            stack.hurry()


def _simulated(settings: Settings, stack: Stack, *, latency: float, fault_rate: float) -> Settings:
    argv = [sys.executable, "-P", "-m", "api_client.simulator", "--port", "0"]
    argv += ["--latency", str(latency), "--fault-rate", str(fault_rate), "--retry-after", "0.25"]
    url = stack.ensure_simulator(argv, {"ANTREAN_SIMULATOR_KEY": _SIMULATION_KEY})
    return settings.for_simulation(url, _SIMULATION_KEY)


def _start_worker(stack: Stack, settings: Settings) -> None:
    if settings.is_broker_embedded:
        stack.ensure_broker()
    argv = [sys.executable, "-P", "-m", "worker.cli", "worker"]
    environment = {**settings.as_environment(), IN_STACK: "1"}
    if not stack.ensure_worker(argv, environment):
        log = settings.home / "logs" / f"{stack.worker_service}.log"
        note(f"a worker with other settings runs for this folder: this run has one of its own, see {log}")
