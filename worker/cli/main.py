"""The `antrean` command: its parts put together, and every ending turned into a sentence and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from worker.cli.console import out
from worker.cli.endings import run_to_its_end
from worker.cli.lazy import LazyGroup
from worker.heap import keep_loaded
from worker.logs.setup import configure_logs

app = typer.Typer(
    name="antrean",
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A durable job queue for chat completions: any OpenAI-compatible endpoint, your own machines.",
    epilog="`antrean COMMAND --help` explains a command.\n\n"
    "Settings are environment variables (ANTREAN_…), .env or antrean.toml; "
    "`antrean check` says what is set and what is wrong.\n\n"
    "Exit codes: 0 all is well, 1 some jobs failed, 2 bad arguments or input, 3 bad settings, "
    "4 something is unreachable, 5 the endpoint refuses the key or the model, "
    "6 it lets no call through (`run --patience`), 70 a defect of antrean, "
    "130 interrupted.\n\n"
    "Example: antrean run documents --prompt summarise.md --simulate\n\n"
    "Example: antrean submit requests.jsonl && antrean worker",
)


def _print_version(value: bool) -> None:
    if value:
        out.print(f"antrean {version()}")
        raise typer.Exit


def version() -> str:
    """This version of antrean."""
    from importlib import metadata  # local: it is only asked for by those who report something

    try:
        return metadata.version("antrean")
    except metadata.PackageNotFoundError:  # run from a checkout, by scripts/antrean
        return "0.1.0.dev0"


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    from worker.settings import warn_of_unknown_names  # local: `--help` and `--version` need no settings

    keep_loaded()  # here the command is loaded, and has not begun
    warn_of_unknown_names()


def main() -> None:
    """Runs the command line and ends the process."""
    sys.exit(run_to_its_end(_run))


def _run() -> None:
    configure_logs("warning", json=False)
    app(prog_name="antrean")  # ends with SystemExit, also for bad arguments
