"""Each command's module is imported when it is asked for: all of them together cost half of a short command's time."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperGroup
from typer.main import get_group

from worker.printable import printable

_UsageError: Any = typer.BadParameter.__base__  # typer has it in public by its children only

HOMES = {
    "run": "running",
    "submit": "submitting",
    "status": "batches",
    "results": "batches",
    "retry": "batches",
    "batches": "listing",
    "workers": "listing",
    "jobs": "job_list",
    "cancel": "jobs",
    "show": "jobs",
    "usage": "usage",
    "pause": "pausing",
    "resume": "pausing",
    "prune": "pruning",
    "check": "checking",
    "models": "checking",
    "migrate": "checking",
    "doctor": "doctoring",
    "give-back": "giving_back",
    "worker": "serving",
    "simulate": "serving",
    "flower": "flower",
    "up": "up",
    "health": "health",
}
"""The module in `worker.cli` of each command, in the order of the help."""


def load_commands(home: str) -> dict[str, Any]:
    """The commands that a module of `worker.cli` registers, by name."""
    app = typer.Typer(rich_markup_mode="rich")
    gc.disable()  # what is imported stays: looking through it for garbage, again and again, is a tenth of the time
    try:
        import_module(f"worker.cli.{home}").register(app)
    finally:
        gc.enable()
    for command in app.registered_commands:
        # A line for each paragraph: a terminal of any width wraps it well.
        paragraphs = inspect.getdoc(command.callback) or ""
        command.help = "\n\n".join(" ".join(one.split()) for one in paragraphs.split("\n\n"))
    return dict(get_group(app).commands)


class _Commands(Mapping[str, Any]):
    """All commands by name; looking at one loads it, counting or naming them loads none."""

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
    """Typer's group over all of our commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = cast(Any, _Commands())  # nothing is ever added to them

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _printable_words():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _printable_words():
            return super().invoke(ctx)


@contextmanager
def _printable_words() -> Iterator[None]:
    """What is wrong with the arguments quotes them, and a shell may have taken them from a folder: `submit *`."""
    try:
        yield
    except _UsageError as exc:
        exc.message = printable(exc.message)
        raise
