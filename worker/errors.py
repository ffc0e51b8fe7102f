"""What a person is told when antrean cannot go on: one sentence that says what to do, and an exit code."""

from __future__ import annotations

import traceback
from enum import IntEnum


class ExitCode(IntEnum):
    """What a program may conclude from how `antrean` ended."""

    OK = 0
    FAILED_JOBS = 1  # it ran to the end; some jobs did not succeed
    USAGE = 2  # bad arguments or input; nothing was written
    SETTINGS = 3  # settings that do not hold together
    UNREACHABLE = 4  # broker, database or endpoint is away
    REFUSED = 5  # the endpoint refuses the key or does not know the model
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


class BrokerAway(Unreachable):
    """The broker does not take messages just now. What was sent may or may not have arrived."""


def tell_place(exc: BaseException) -> str:
    """Where an error was raised, as `file.py:12`. Its text is not told: it may quote anything."""
    frames = traceback.extract_tb(exc.__traceback__)
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "?"
