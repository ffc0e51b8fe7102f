"""Runs a command that prints a key, and reads what it printed. No sentence here quotes what was printed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from worker.settings import check_api_key

_MOST_BYTES = 64 * 1024
_PREFIX = "ANTREAN_"


class NoKeyPrinted(Exception):
    """The command gave no key. The text says why, as the rest of a sentence."""


@dataclass(frozen=True, slots=True)
class PrintedKey:
    """A key, and when it ends (UTC, ms since the epoch; None: nobody knows)."""

    key: str = field(repr=False)
    expires_at_ms: int | None = None


class KeyProgram:
    """A command that prints a key. It runs without a shell, without input, and without the settings of antrean.

    What it writes to standard error is dropped. A run that takes longer than `timeout_s` is killed, with what it has
    started.
    """

    def __init__(
        self, words: Sequence[str], *, timeout_s: float, environ: Mapping[str, str] | None = None
    ) -> None:
        """`environ` None: that of this process."""
        self._words = list(words)
        self._timeout_s = timeout_s
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None  # while it runs
        self._is_stopped = False

    def run(self) -> PrintedKey:
        """The key that it prints. One run at a time. Raises NoKeyPrinted."""
        return parse_printed(self._run())

    def stop(self) -> None:
        """Kills a run, and lets no other begin: this process ends. From any thread."""
        self._is_stopped = True
        process = self._process
        if process is not None and process.poll() is None:
            _kill(process)

    def _run(self) -> bytes:
        if self._is_stopped:
            raise NoKeyPrinted("was not run: the worker ends")
        end_s = time.monotonic() + self._timeout_s
        environ = os.environ if self._environ is None else self._environ
        try:
            process = self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: value for name, value in environ.items() if not name.upper().startswith(_PREFIX)},
                start_new_session=True,
            )
        except (OSError, ValueError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "its words cannot be passed on"
            raise NoKeyPrinted(f"cannot be started ({why})") from None
        code: int | None = None
        try:
            if self._is_stopped:  # meanwhile: nobody else has seen this process
                _kill(process)
            printed = _read(process, end_s)
            if printed is not None:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(max(0.0, end_s - time.monotonic()))
        finally:
            if code is None:  # it runs, or has ended and left something that keeps its output open
                _kill(process)
                process.wait()
            self._process = None
            assert process.stdout is not None
            process.stdout.close()
        if code is None or printed is None:
            raise NoKeyPrinted(f"did not end within {self._timeout_s:g} s")
        if code:
            raise NoKeyPrinted(f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}")
        return printed


def parse_printed(printed: bytes) -> PrintedKey:
    """The key in what a command printed: a bare line, or JSON such as `{"key": …, "expires_at": …}`.

    `expires_at` is a time in ISO 8601 (UTC where it names no zone), or seconds since the epoch. Raises NoKeyPrinted.
    """
    text = printed.strip()
    if not text:
        raise NoKeyPrinted("printed nothing")
    expires_at: Any = None
    key: Any = None
    if text.startswith(b"{"):
        found = _parse_json(text)
        if found is not None:
            key, expires_at = found.get("key"), found.get("expires_at")
    else:
        key = text.decode("ascii", "replace")
    if not isinstance(key, str) or not _is_key(key):
        raise NoKeyPrinted(
            "printed no key: a line of printable ASCII without spaces is wanted, or JSON with `key` and `expires_at`"
        )
    return PrintedKey(key, None if expires_at is None else _parse_time_ms(expires_at))


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its session is its own


def _read(process: subprocess.Popen[bytes], end_s: float) -> bytes | None:
    """All that it prints; None if it has not closed its output by `end_s`. Raises NoKeyPrinted for too much."""
    assert process.stdout is not None
    descriptor, printed = process.stdout.fileno(), b""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while True:
        left_s = end_s - time.monotonic()
        if left_s <= 0 or not poller.poll(left_s * 1000):
            return None
        chunk = os.read(descriptor, _MOST_BYTES)
        if not chunk:
            return printed
        printed += chunk
        if len(printed) > _MOST_BYTES:
            raise NoKeyPrinted(f"printed more than {_MOST_BYTES // 1024} KiB")


def _parse_json(text: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(text)
    except ValueError:
        found = None  # not raised from here: the error would hold what was printed
    return found if isinstance(found, dict) else None


def _is_key(key: str) -> bool:
    try:
        check_api_key(key)
    except ValueError:
        return False
    return True


def _parse_time_ms(value: object) -> int:
    at_ms: float | None = None
    if isinstance(value, str):
        with suppress(ValueError, OverflowError):
            at = datetime.fromisoformat(value.strip())
            at_ms = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() * 1000
    elif isinstance(value, int | float) and not isinstance(value, bool):
        at_ms = value * 1000
    if at_ms is None or not 0 <= at_ms < 1e15:
        raise NoKeyPrinted("printed an `expires_at` that is no time (ISO 8601, or seconds since 1970)")
    return round(at_ms)
