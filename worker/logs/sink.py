"""Where all lines of a log meet, on standard error: structlog's events, the standard library's records, and crashes.

Needs no structlog, which takes a short process longer than its work.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from worker.logs.counts import Counted
from worker.logs.lines import is_ours, read_record, render
from worker.text.wrapping import terminal_width, wrap_lines

# Celery says three lines a task, and of each failure what the ledger says better.
_SPEAKS_FROM = {
    "celery.app.trace": logging.ERROR,
    "celery.worker.strategy": logging.WARNING,
    "celery.worker.request": logging.WARNING,
    "kombu": logging.WARNING,
    "amqp": logging.WARNING,
    "alembic": logging.WARNING,
    # It asks workers that are only just starting, too.
    "flower.inspector": logging.ERROR,
}
_log = logging.getLogger("antrean")


def take_over(level: int, *, as_json: bool) -> None:
    """Has the standard library's records told as our own events are. May be called again.

    A library is not heard below INFO, whatever `level` says: there it quotes what it carries. What is many is
    counted, but at DEBUG each is told.
    """
    _sink.set(level, as_json=as_json)
    root = logging.getLogger()
    root.handlers[:] = [_Handler()]
    root.setLevel(max(level, logging.INFO))
    for name, least in _SPEAKS_FROM.items():
        logging.getLogger(name).setLevel(max(level, least))


def tell_crashes() -> None:
    """Has what ends this process, or one of its threads, unforeseen told as all else: without texts and values."""
    sys.excepthook = _tell_crash
    threading.excepthook = _tell_thread_crash
    sys.unraisablehook = _tell_unraisable


def take_event(level: str, facts: Mapping[str, Any]) -> None:
    """Tells an event of ours, or counts it. `facts` holds `event`, its fields, and `exc_info` if there is any."""
    _sink.take_event(level, facts)


def flush_logs() -> None:
    """Says what was counted and not said yet: for a process that ends without Python's own way out."""
    _sink.flush()


class _Sink:
    """Lines counted where they are many, rendered, and written in one piece."""

    def __init__(self) -> None:
        self._level = logging.INFO
        self._as_json = True
        self._counted = Counted(self._write_count)
        self._lock = threading.RLock()  # a signal's handler may have a word while its thread is writing

    def set(self, level: int, *, as_json: bool) -> None:
        self._level, self._as_json = level, as_json

    def take_event(self, level: str, facts: Mapping[str, Any]) -> None:
        number = getattr(logging, level.upper(), logging.INFO)
        if number >= self._level and self._admits({**facts, "level": level}):
            self._write({"timestamp": _now(), "level": level, "event": facts["event"], **facts})

    def take_record(self, record: logging.LogRecord) -> None:
        facts = read_record(record)
        # The words as they stand in the source, so that a thousand failures are one kind.
        words = record.msg if record.args and isinstance(record.msg, str) else facts["event"]
        if self._admits({"event": words, "level": facts["level"], "logger": record.name}):
            self._write(facts)

    def flush(self) -> None:
        self._counted.flush()

    def _admits(self, facts: Mapping[str, Any]) -> bool:
        return self._level <= logging.DEBUG or self._counted.admits(facts)

    def _write_count(self, facts: Mapping[str, Any]) -> None:
        self._write({"timestamp": _now(), **facts})

    def _write(self, facts: Mapping[str, Any]) -> None:
        line = render(facts, as_json=self._as_json)
        try:
            if not self._as_json and sys.stderr.isatty():
                line = wrap_lines(line, terminal_width(2))
            with self._lock:
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
        except (OSError, ValueError, RuntimeError):
            # The reader is gone, or a signal came in mid-write: a log line must not end a worker's way out.
            pass


class _Handler(logging.Handler):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.INFO or is_ours(record.name)

    def emit(self, record: logging.LogRecord) -> None:
        _sink.take_record(record)


_sink = _Sink()  # one a process, as standard error is
atexit.register(flush_logs)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _tell_crash(kind: type[BaseException], exc: BaseException, _trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):  # of which Python itself makes the exit status
        _log.critical("process.crashed", exc_info=exc)


def _tell_thread_crash(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = None if args.thread is None else args.thread.name
        _log.critical("thread.crashed thread=%s", name, exc_info=args.exc_value)


def _tell_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    _log.error("process.error_outside", exc_info=unraisable.exc_value)
