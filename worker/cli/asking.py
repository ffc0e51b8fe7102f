"""A question to the person at the terminal."""

from __future__ import annotations

import sys

from worker.cli.console import err, note

_YES, _NO = (b"y", b"yes"), (b"", b"n", b"no")


def can_ask() -> bool:
    """Whether a person at a terminal sees a question and can answer it."""
    # The question goes to standard error. If that is a file, no person sees the question.
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def is_confirmed(question: str) -> bool:
    """Whether the answer is yes. Enter alone and the end of input are no; what is neither is asked again.

    Ctrl-C raises KeyboardInterrupt.
    """
    while True:
        try:
            err.say(f"{question} [y/N]", end=" ")
            line = sys.stdin.buffer.readline()
        except KeyboardInterrupt:
            err.say("")  # the terminal stands behind the question
            raise
        if not line.endswith(b"\n"):
            err.say("")
        answer = line.strip().lower()
        if answer in _YES:
            return True
        if answer in _NO:
            return False
        note("type y for yes, or n for no")
