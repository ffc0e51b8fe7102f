"""How a worker process that cannot work ends: with one sentence and its exit code, never as one that says "ready"."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, NoReturn

from worker.errors import AntreanError, ExitCode, explain_os_error, tell_place


def or_end(
    leave: Callable[[], None], *, end: Callable[[int], object] = sys.exit
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a receiver of Celery's signals without which no worker works: whatever it raises ends the process.

    Celery logs what a receiver raises, with its arguments' values, and goes on: with a worker that is ready, does
    nothing and never ends. `leave` lets go of what the process holds, and `end` gets the exit code.
    """

    def decorate(receiver: Callable[..., None]) -> Callable[..., None]:
        @wraps(receiver)
        def guarded(**given: Any) -> None:
            try:
                receiver(**given)
            except Exception as exc:
                code = _tell(exc)
                leave()
                end(code)

        return guarded

    return decorate


def end_with(exc: Exception) -> NoReturn:
    """Says why, and ends this process."""
    raise SystemExit(_tell(exc))


def _tell(exc: Exception) -> int:
    """The exit code of a process that ends with `exc`, once its sentence is said."""
    known = (
        explain_os_error(exc) if isinstance(exc, OSError) else exc if isinstance(exc, AntreanError) else None
    )
    # What nobody thought of is told by its kind and place alone: its text may quote an address with a password.
    unknown = f"this process cannot start: {type(exc).__name__} in {tell_place(exc)}. Please report it"
    with suppress(OSError):  # nobody reads it
        if known is None and os.environ.get("ANTREAN_LOG_LEVEL") == "debug":
            sys.stderr.write("".join(traceback.format_tb(exc.__traceback__)))
        sys.stderr.write(f"antrean: {unknown if known is None else known}\n")
        sys.stderr.flush()
    return int(ExitCode.INTERNAL if known is None else known.exit_code)
