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


def or_end(leave: Callable[[], None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a receiver of Celery's signals without which no worker works: whatever it raises ends the process.

    Celery logs what a receiver raises, with its arguments' values, and goes on: with a worker that is ready, does
    nothing and never ends. `leave` lets go of what the process holds.
    """

    def decorate(receiver: Callable[..., None]) -> Callable[..., None]:
        @wraps(receiver)
        def guarded(**given: Any) -> None:
            try:
                receiver(**given)
            except Exception as exc:
                end_with(exc, leave)

        return guarded

    return decorate


def end_with(exc: Exception, leave: Callable[[], None] = lambda: None) -> NoReturn:
    """Says why, lets go, and ends this process. What nobody thought of is told by its kind and place alone."""
    known = exc if isinstance(exc, AntreanError) else None
    if known is None and isinstance(exc, OSError):
        known = explain_os_error(exc)
    if known is None:
        # Its text may quote an address with a password.
        sentence = f"this process cannot start: {type(exc).__name__} in {tell_place(exc)}. Please report it"
    else:
        sentence = str(known)
    if known is None and os.environ.get("ANTREAN_LOG_LEVEL") == "debug":
        sys.stderr.write("".join(traceback.format_tb(exc.__traceback__)))
    with suppress(OSError):  # nobody reads it
        sys.stderr.write(f"antrean: {sentence}\n")
        sys.stderr.flush()
    leave()
    raise SystemExit(int(ExitCode.INTERNAL if known is None else known.exit_code))
