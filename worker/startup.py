"""The end of a worker process that cannot start: it says one sentence and ends with its exit code."""

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
    """Decorates a receiver of Celery's signals that every worker needs. An error of the receiver ends the process.

    Celery would log the error, with the values of arguments, and go on. The worker would say that it is ready, and do
    nothing. `leave` releases what the process holds. `end` is called with the exit code. The process must have its logs
    configured: they say where an unexpected error was raised.
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
    """Says why this process cannot go on, and ends it with the exit code of `exc`."""
    raise SystemExit(_tell(exc))


def say(sentence: str) -> None:
    """Writes a line to standard error, before there is a console or a log."""
    with suppress(OSError):  # nobody reads it
        width = terminal_width(2) if sys.stderr.isatty() else None
        sys.stderr.write("\n".join([*wrap_line(f"antrean: {printable(sentence)}", width), ""]))
        sys.stderr.flush()


def _tell(exc: Exception) -> int:
    """Says the sentence of `exc`, and returns the exit code."""
    known = _known(exc)
    if known is not None:
        say(str(known))
        return int(known.exit_code)
    # The text of an unexpected error is not told: it may quote an address with a password.
    say(f"this process cannot start: {tell_error(exc)}, at {tell_place(exc)}. Please report it")
    return int(ExitCode.INTERNAL)


def _known(exc: Exception) -> AntreanError | None:
    return (
        explain_os_error(exc) if isinstance(exc, OSError) else exc if isinstance(exc, AntreanError) else None
    )
