"""How a command ends: with a sentence and an exit code, and without a traceback for what a user can put right."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from worker.cli.advice import advise
from worker.cli.console import complain, err, speak_any_encoding
from worker.errors import (
    AntreanError,
    ExitCode,
    InputError,
    SettingsError,
    explain_os_error,
    tell_place,
)
from worker.logs.crashes import tell_error, tell_traceback

CLOSED_PIPE = 128 + signal.SIGPIPE  # what a shell says of any command whose reader has left (`| head`)


class OutputLost(AntreanError):
    """Standard output cannot be written."""


class _Output(io.FileIO):
    """Standard output. It notes its own failures, because the error of a failed write names no file."""

    is_left = False  # by its reader
    is_lost = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            self.is_left = True
            raise
        except OSError as exc:
            self.is_lost = True
            raise OutputLost(
                f"standard output cannot be written ({exc.strerror}): give it another place"
            ) from exc


class _Remarks(io.FileIO):
    """Standard error. A write that fails is ignored: a remark must not end a run, also one that is ending."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            super().write(data)
        return len(data)


def run_to_its_end(command: Callable[[], object]) -> int:
    """Runs a command and returns its exit code, once all that it printed has left this process."""
    _open_missing_streams()
    raw = _Output(1, "w", closefd=False)
    sys.stdout = stdout = _as_text(raw, sys.stdout)
    sys.stderr = _as_text(_Remarks(2, "w", closefd=False), sys.stderr)
    speak_any_encoding()
    code = code_of(command)
    if not raw.is_lost and not raw.is_left:
        code = code_of(stdout.flush) or code
    if raw.is_lost or raw.is_left:
        # The interpreter would try once more to write what is left, and say in words of its own that it cannot.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    return CLOSED_PIPE if raw.is_left else code


def code_of(command: Callable[[], object]) -> int:
    """The exit code of a command, its sentence said where it has one."""
    try:
        command()
    except SystemExit as exc:
        return ExitCode.OK if exc.code is None else exc.code if isinstance(exc.code, int) else ExitCode.USAGE
    except SettingsError as exc:
        complain("these settings cannot be used:", exc.problems)
        return exc.exit_code
    except AntreanError as exc:
        complain(advise(exc), exc.problems if isinstance(exc, InputError) else None)
        return exc.exit_code
    except BrokenPipeError:
        return CLOSED_PIPE
    except Exception as exc:
        known = explain_os_error(exc) if isinstance(exc, OSError) else None
        if known is not None:
            complain(str(known))
            return known.exit_code
        if isinstance(exc, UnicodeEncodeError) and any(map(_is_no_text, sys.argv)):
            complain("an argument is not UTF-8 text: only the name of a file may be any bytes")
            return ExitCode.USAGE
        # A defect of ours. The places are for us, the sentence for the user; neither quotes what was worked on.
        if os.environ.get("ANTREAN_LOG_LEVEL") == "debug":
            for line in tell_traceback(exc).split("\n"):
                err.say(line)
        complain(
            f"this should not have happened: {tell_error(exc)}, at {tell_place(exc)}. "
            "Please report it, with what ANTREAN_LOG_LEVEL=debug shows."
        )
        return ExitCode.INTERNAL
    return ExitCode.OK


def _is_no_text(argument: str) -> bool:
    return any("\ud800" <= one <= "\udfff" for one in argument)


def _as_text(raw: io.FileIO, stream: TextIO | None) -> io.TextIOWrapper:
    """A stream in place of `stream`, which is None where the process began with it closed."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream is not None else "utf-8",
        # As it was; of an unbuffered one (PYTHONUNBUFFERED) each line leaves at once.
        line_buffering=not isinstance(stream, io.TextIOWrapper)
        or stream.line_buffering
        or stream.write_through,
    )


def _open_missing_streams() -> None:
    """Opens standard streams that are closed (`>&-`). Otherwise a file of ours gets their number, and their output.

    Writing to a closed standard output is an error, as for every command. A closed standard error is ignored.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
