"""The `antrean` command: its parts put together, and every ending turned into a sentence and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from worker.cli.console import complain, err, out, speak_any_encoding
from worker.cli.lazy import LazyGroup
from worker.crashes import tell_error, tell_traceback
from worker.errors import AntreanError, ExitCode, InputError, SettingsError, tell_place
from worker.heap import keep_loaded
from worker.logs import configure_logs

app = typer.Typer(
    name="antrean",
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A durable job queue for chat completions: any OpenAI-compatible endpoint, your own machines.",
    epilog="`antrean COMMAND --help` says more of each command.\n\n"
    "Settings are environment variables (ANTREAN_…), .env or antrean.toml; "
    "`antrean check` says what is set and what is wrong.\n\n"
    "Exit codes: 0 all is well, 1 some jobs failed, 2 bad arguments or input, 3 bad settings, "
    "4 something is unreachable, 5 the endpoint refuses the key or the model, 70 a defect of antrean, "
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
    keep_loaded()  # here the command is loaded, and has not begun


def main() -> None:
    """Runs the command line and ends the process. No traceback for what a user can put right."""
    speak_any_encoding()
    configure_logs("warning", json=False)
    try:
        app(prog_name="antrean")  # ends with SystemExit, also for bad arguments
    except SettingsError as exc:
        complain("these settings cannot be used:", exc.problems)
        sys.exit(exc.exit_code)
    except AntreanError as exc:
        complain(str(exc), exc.problems if isinstance(exc, InputError) else None)
        sys.exit(exc.exit_code)
    except Exception as exc:
        # A defect of ours. The places are for us, the sentence for the user; neither quotes what was worked on.
        if os.environ.get("ANTREAN_LOG_LEVEL") == "debug":
            for line in tell_traceback(exc).split("\n"):
                err.say(line)
        complain(
            f"this should not have happened: {tell_error(exc)}, at {tell_place(exc)}. "
            "Please report it, with what ANTREAN_LOG_LEVEL=debug shows."
        )
        sys.exit(ExitCode.INTERNAL)
