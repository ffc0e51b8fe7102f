"""Writes all log lines to standard error: structlog's events, the standard library's records, and crashes.

It does not import structlog, whose import takes longer than the whole work of a short process.
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

# Celery logs three lines a task. What it logs of a failure is in the ledger, with more details.
_SPEAKS_FROM = {
    "celery.app.trace": logging.ERROR,
    "celery.worker.strategy": logging.WARNING,
    "celery.worker.request": logging.WARNING,
    "kombu": logging.WARNING,
    "amqp": logging.WARNING,
    "alembic": logging.WARNING,
    # Flower asks workers that are still starting, too, and warns that they do not answer.
    "flower.inspector": logging.ERROR,
}
_log = logging.getLogger("antrean")


def take_over(level: int, *, as_json: bool) -> None:
    """Sends the standard library's records through this sink. May be called again.

    Records of libraries below INFO are dropped, whatever `level` says: they quote what the library handles. Repeated
    events are counted; at level DEBUG each is written.
    """
    _sink.set(level, as_json=as_json)
    root = logging.getLogger()
    root.handlers[:] = [_Handler()]
    root.setLevel(max(level, logging.INFO))
    for name, least in _SPEAKS_FROM.items():
        logging.getLogger(name).setLevel(max(level, least))


def tell_crashes() -> None:
    """Logs unhandled exceptions of this process and its threads like all events: without unsafe texts and values."""
    sys.excepthook = _tell_crash
    threading.excepthook = _tell_thread_crash
    sys.unraisablehook = _tell_unraisable


def take_event(level: str, facts: Mapping[str, Any]) -> None:
    """Writes one of our events, or counts it. `facts`: `event`, its fields, and `exc_info` if there is an exception."""
    _sink.take_event(level, facts)


def flush_logs() -> None:
    """Writes the counts that are not written yet. For a process that ends without Python's exit handlers."""
    _sink.flush()


class _Sink:
    """Renders events and writes each as one whole line; counts repeated ones."""

    def __init__(self) -> None:
        self._level = logging.INFO
        self._as_json = True
        self._counted = Counted(self._write_count)
        self._lock = threading.RLock()  # a signal handler may log while its thread is writing

    def set(self, level: int, *, as_json: bool) -> None:
        self._level, self._as_json = level, as_json

    def take_event(self, level: str, facts: Mapping[str, Any]) -> None:
        number = getattr(logging, level.upper(), logging.INFO)
        if number >= self._level and self._admits({**facts, "level": level}):
            self._write({"timestamp": _now(), "level": level, "event": facts["event"], **facts})

    def take_record(self, record: logging.LogRecord) -> None:
        facts = read_record(record)
        # Count by the message before its arguments are filled in, so that a thousand failures are one kind.
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
            # The reader is gone, or a signal interrupted the write. A log line must not stop a worker's shutdown.
            pass


class _Handler(logging.Handler):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.INFO or is_ours(record.name)

    def emit(self, record: logging.LogRecord) -> None:
        _sink.take_record(record)


_sink = _Sink()  # one per process, like standard error
atexit.register(flush_logs)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _tell_crash(kind: type[BaseException], exc: BaseException, _trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):  # Python itself turns it into an exit status
        _log.critical("process.crashed", exc_info=exc)


def _tell_thread_crash(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = None if args.thread is None else args.thread.name
        _log.critical("thread.crashed thread=%s", name, exc_info=args.exc_value)


def _tell_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    _log.error("process.error_outside", exc_info=unraisable.exc_value)
