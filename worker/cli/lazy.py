"""Each command's module is imported when the command is called: the list of all commands needs none of them."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_group

from worker.files.names import FileName, as_text
from worker.text.printable import printable

_UsageError: Any = typer.BadParameter.__base__  # typer has it in public by its children only


@dataclass(frozen=True, slots=True)
class Listed:
    """A command as the list of all commands shows it, and the module in `worker.cli` that has it."""

    home: str
    summary: str  # the first line of its help


GROUPS: Mapping[str, Mapping[str, Listed]] = {
    "Work": {
        "run": Listed("running", "Queue a job for each document, and write their results."),
        "submit": Listed("submitting", "Write a batch of requests to the ledger; workers send them."),
        "results": Listed("batches", "Write the results of a batch as OpenAI batch output lines."),
        "retry": Listed("batches", "Queue failed, cancelled or expired jobs of a batch again."),
        "budget": Listed("budgeting", "Show a batch's budget, or set it."),
        "weight": Listed("weighing", "Show a batch's weight, or change it."),
        "cancel": Listed("jobs", "Cancel a batch or one job."),
    },
    "Look": {
        "status": Listed("status", "Show the status of a batch, or of the whole ledger."),
        "batches": Listed("listing", "List the batches, the newest first."),
        "jobs": Listed("job_list", "List jobs, one by one."),
        "show": Listed("jobs", "Show all facts of a job."),
        "usage": Listed("usage", "Add up the tokens of all answered calls, and what they cost."),
        "workers": Listed("listing", "List the workers that have not ended, the oldest first."),
        "flower": Listed(
            "flower", "Watch workers and tasks in a browser: the same as `celery -A worker flower`."
        ),
    },
    "Operate": {
        "worker": Listed("serving", "Work on queued jobs until stopped."),
        "up": Listed(
            "up",
            "Run the whole stack in the foreground: database, broker, workers and Flower, until stopped.",
        ),
        "pause": Listed("pausing", "Claim no more jobs of the endpoint until `antrean resume`."),
        "resume": Listed("pausing", "End a pause: jobs of the endpoint are claimed again."),
        "limits": Listed("limiting", "Show, set or clear how much the endpoint is asked for."),
        "gate": Listed("gating", "Show why no job is called, or have the jobs called again at once."),
        "prune": Listed("pruning", "Remove jobs that have ended, with their requests, results and attempts."),
        "give-back": Listed(
            "giving_back", "Put messages of other apps, which workers have set aside, back on their queue."
        ),
        "doctor": Listed("doctoring", "Check the ledger for defects, and say what to do about them."),
        "health": Listed(
            "health",
            "Check whether a worker of this host and its broker are alive, for health checks of containers.",
        ),
    },
    "Set up": {
        "check": Listed("checking", "Check all that is needed, and say what to do about each problem."),
        "models": Listed("checking", "List the models that the endpoint runs now."),
        "migrate": Listed("checking", "Bring the database to this version's schema."),
        "simulate": Listed("simulating", "Serve a simulated endpoint, with faults and limits on demand."),
    },
}
"""All commands in the order of the help, by what one wants to do."""

HOMES = {name: one.home for group in GROUPS.values() for name, one in group.items()}
"""The module in `worker.cli` of each command, in the order of the help."""


def load_commands(home: str) -> dict[str, Any]:
    """The commands that a module of `worker.cli` registers, by name."""
    app = typer.Typer(rich_markup_mode="rich")
    was_enabled = gc.isenabled()
    gc.disable()  # what is imported stays: looking through it for garbage, again and again, is a third of the time
    try:
        import_module(f"worker.cli.{home}").register(app)
    finally:
        if was_enabled:
            gc.enable()
    for command in app.registered_commands:
        command.cls = _Command
        # A line for each paragraph: a terminal of any width wraps it well.
        paragraphs = inspect.getdoc(command.callback) or ""
        command.help = "\n\n".join(" ".join(one.split()) for one in paragraphs.split("\n\n"))
        command.callback = _with_words(cast(Callable[..., Any], command.callback))
    return dict(get_group(app).commands)


def _show_flags_plainly(params: Iterable[Any]) -> None:
    for param in params:
        if isinstance(param, TyperOption) and param.is_flag:
            param.metavar = ""  # a flag takes no value: Typer would name its type


class _Command(TyperCommand):
    """Typer's command, in whose help a flag is its name alone."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show_flags_plainly(self.get_params(ctx))
        super().format_help(ctx, formatter)


def _with_words(callback: Callable[..., Any]) -> Callable[..., Any]:
    """The command, whose arguments are UTF-8 in every locale; a path stays what the system calls it."""

    @wraps(callback)
    def called(**given: Any) -> Any:
        return callback(**{name: _as_words(value) for name, value in given.items()})

    return called


def _as_words(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(_as_words, value))
    return as_text(FileName(value)) if type(value) is str and not value.isascii() else value


class _Commands(Mapping[str, Any]):
    """All commands by name. Reading one loads it; counting or listing names loads none."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded |= load_commands(HOMES[name])
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in HOMES

    def __iter__(self) -> Iterator[str]:
        return iter(HOMES)

    def __len__(self) -> int:
        return len(HOMES)


class LazyGroup(TyperGroup):
    """Typer's group over all of our commands: it loads the one that is called, and lists all without loading any."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = cast(Any, _Commands())  # nothing is ever added to them

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands, in the order of the help."""
        return list(HOMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """What the help and the shell's completion list of a command."""
        for title, group in GROUPS.items():
            if cmd_name in group:
                one = group[cmd_name]
                return TyperCommand(cmd_name, help=one.summary, rich_help_panel=title)
        return None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that is called, its name and its arguments; loads it. See `click.Group`."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, None if listed is None or name is None else self.commands[name], rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show_flags_plainly(self.get_params(ctx))
        super().format_help(ctx, formatter)

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _printable_words():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _printable_words():
            return super().invoke(ctx)


@contextmanager
def _printable_words() -> Iterator[None]:
    """Makes the message of a usage error printable: it quotes arguments, which may be names of files (`submit *`)."""
    try:
        yield
    except _UsageError as exc:
        exc.message = printable(exc.message)
        raise
