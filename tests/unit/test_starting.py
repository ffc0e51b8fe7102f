"""A worker that cannot start ends: Celery would log what a receiver raises, and go on without it."""

from __future__ import annotations

import errno

import pytest
from celery.utils.dispatch import Signal

from worker.errors import ExitCode, SettingsError, Unreachable
from worker.startup import or_end


def end_of(exc: Exception, left: list[str]) -> int:
    """The exit code of a process whose receiver raises `exc`, sent by Celery's own signals."""
    started = Signal(name="started")

    @started.connect(weak=False)
    @or_end(lambda: left.append("left"))
    def _start(**_: object) -> None:
        raise exc

    with pytest.raises(SystemExit) as ended:
        started.send(sender=None)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("exc", "code", "words"),
    [
        (SettingsError(["ANTREAN_X: is odd"]), ExitCode.SETTINGS, "ANTREAN_X: is odd"),
        (Unreachable("the broker is away"), ExitCode.UNREACHABLE, "the broker is away"),
        (OSError(errno.ENOSPC, "No space left", "/srv/x"), ExitCode.UNREACHABLE, "the disk is full, /srv/x"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/srv/x"),
            ExitCode.UNREACHABLE,
            "/srv/x cannot be used",
        ),
        (ValueError("redis://:secret@h"), ExitCode.INTERNAL, "ValueError, at test_starting.py"),
        (KeyError("secret"), ExitCode.INTERNAL, "KeyError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_a_start_raises_ends_the_process_with_one_sentence(
    capsys: pytest.CaptureFixture[str], exc: Exception, code: int, words: str
) -> None:
    left: list[str] = []
    assert end_of(exc, left) == code
    assert left == ["left"], "what the process holds is let go"
    lines = capsys.readouterr().err.splitlines()
    [said] = [line for line in lines if not line.startswith("{")]  # a defect is logged as well
    assert said.startswith("antrean: ")
    assert words in said
    assert "secret" not in said


def test_without_a_guard_celery_goes_on() -> None:
    """Contract: the day that this fails, the guard may go."""
    started = Signal(name="started")

    @started.connect(weak=False)
    def _start(**_: object) -> None:
        raise ValueError

    assert len(started.send(sender=None)) == 1
