"""How a worker process that cannot work ends: with one sentence and its exit code, never as one that says "ready"."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, NoReturn

import structlog

from worker.errors import AntreanError, ExitCode, explain_os_error, tell_place
from worker.logs.crashes import tell_error
from worker.text.printable import printable
from worker.text.wrapping import terminal_width, wrap_line

log = structlog.get_logger(__name__)


def or_end(
    leave: Callable[[], None], *, end: Callable[[int], object] = sys.exit
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a receiver of Celery's signals without which no worker works: whatever it raises ends the process.

    Celery logs what a receiver raises, with its arguments' values, and goes on: with a worker that is ready, does
    nothing and never ends. `leave` lets go of what the process holds, and `end` gets the exit code. For a
    process whose logs are configured: they tell where a defect was met.
    """

    def decorate(receiver: Callable[..., None]) -> Callable[..., None]:
        @wraps(receiver)
        def guarded(**given: Any) -> None:
            try:
                receiver(**given)
            except Exception as exc:
                if _known(exc) is None:
                    log.critical("process.cannot_start", error=type(exc).__name__, exc_info=exc)
                code = _tell(exc)
                leave()
                end(code)

        return guarded

    return decorate


def end_with(exc: Exception) -> NoReturn:
    """Says why, and ends this process."""
    raise SystemExit(_tell(exc))


def say(sentence: str) -> None:
    """A line on standard error, before there is a console or a log."""
    with suppress(OSError):  # nobody reads it
        width = terminal_width(2) if sys.stderr.isatty() else None
        sys.stderr.write("\n".join([*wrap_line(f"antrean: {printable(sentence)}", width), ""]))
        sys.stderr.flush()


def _tell(exc: Exception) -> int:
    """The exit code of a process that ends with `exc`, once its sentence is said."""
    known = _known(exc)
    if known is not None:
        say(str(known))
        return int(known.exit_code)
    # Of what nobody thought of no text is told that may quote an address with a password.
    say(f"this process cannot start: {tell_error(exc)}, at {tell_place(exc)}. Please report it")
    return int(ExitCode.INTERNAL)


def _known(exc: Exception) -> AntreanError | None:
    return (
        explain_os_error(exc) if isinstance(exc, OSError) else exc if isinstance(exc, AntreanError) else None
    )
