"""What a person is told when antrean cannot go on: one sentence that says what to do, and an exit code."""

from __future__ import annotations

import errno
import traceback
from enum import IntEnum


class ExitCode(IntEnum):
    """What a program may conclude from how `antrean` ended."""

    OK = 0
    FAILED_JOBS = 1  # it ran to the end; some jobs did not succeed, or a question was answered with no
    USAGE = 2  # bad arguments or input; nothing was written
    SETTINGS = 3  # settings that do not hold together
    UNREACHABLE = 4  # broker, database or endpoint is away
    REFUSED = 5  # the endpoint refuses the key or does not know the model
    SHUT = 6  # the endpoint let no call through for as long as the command was to wait; the jobs are kept
    INTERNAL = 70  # a defect of ours
    INTERRUPTED = 130


class AntreanError(Exception):
    """A problem with a sentence for the person at the keyboard."""

    exit_code = ExitCode.USAGE


class InputError(AntreanError):
    """Input that cannot be used. `problems` holds every one of them, a line each."""

    def __init__(self, sentence: str, problems: list[str] | None = None) -> None:
        super().__init__(sentence)
        self.problems = problems or []


class NotFound(InputError):
    """No batch or job is called so, or it was removed just now. Nothing was changed."""


class InUse(InputError):
    """What is asked must wait: a run or a worker needs what it would change. Nothing was changed."""


class SettingsError(AntreanError):
    """Settings that cannot be used. `problems` names all of them at once."""

    exit_code = ExitCode.SETTINGS

    def __init__(self, problems: list[str]) -> None:
        super().__init__("these settings cannot be used: " + "; ".join(problems))
        self.problems = problems


class Unreachable(AntreanError):
    """A broker, database or endpoint that does not answer."""

    exit_code = ExitCode.UNREACHABLE


class Refused(AntreanError):
    """The endpoint refuses the key, or does not know the model."""

    exit_code = ExitCode.REFUSED


class GateShut(AntreanError):
    """The endpoint lets no call through, for longer than the command was to wait. The jobs are kept."""

    exit_code = ExitCode.SHUT


class KeyUnavailable(Refused):
    """No key can be had: its command failed. Nothing was sent to the endpoint."""


class BrokerAway(Unreachable):
    """The broker does not take messages just now. What was sent may or may not have arrived."""


_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ADVICE = {
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "end something else: all of this machine's files are open",
    errno.ENOMEM: "end something else: all of this machine's memory is in use",
}


def is_disk_full(exc: BaseException) -> bool:
    """Whether there is no room left where something was to be written."""
    return isinstance(exc, OSError) and exc.errno in _IS_FULL


def explain_os_error(exc: OSError) -> AntreanError | None:
    """The sentence about something that this machine lacks or forbids; None for what only a defect of ours explains."""
    if exc.errno is None or exc.errno in (errno.EBADF, errno.EINVAL):
        return None
    file = exc.filename if isinstance(exc.filename, (str, bytes)) else ""
    name = file.decode(errors="replace") if isinstance(file, bytes) else file
    if is_disk_full(exc):
        return Unreachable(
            f"the disk is full{f', {name} cannot be written' if name else ''}: make room on it"
        )
    words = exc.strerror or type(exc).__name__
    if exc.errno in _ADVICE:
        return Unreachable(f"{words}: {_ADVICE[exc.errno]}")
    if name:
        return Unreachable(f"{name} cannot be used ({words})")
    return None


def tell_place(exc: BaseException) -> str:
    """Where an error was raised, as `file.py:12`. Its text is not told: it may quote anything."""
    frames = traceback.extract_tb(exc.__traceback__)
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "?"


class Stopping(Exception):
    """The worker is shutting down: nothing new begins."""
