"""Logs: a static event with fields, on standard error. Never a prompt, a completion or a key."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from typing import TextIO, cast

import structlog

# Celery says three lines a task; the ledger says it better.
_CHATTY = ("celery.worker.strategy", "celery.worker.request", "kombu", "amqp", "alembic")


class _StandardError(io.TextIOBase):
    """Standard error whose reader may be gone: a log line that nobody reads must not end a worker's way out."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


class _NoPayload(logging.Filter):
    """kombu quotes the whole message when it cannot put one back (invariant 10)."""

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("Could not restore message"):
            record.msg, record.args = "Could not restore message", ()
        return True


def configure_logs(level: str = "info", *, json: bool | None = None) -> None:
    """Sends structlog and the standard library's records to standard error, one line each.

    JSON unless standard error is a terminal, or as `json` says.
    """
    stream = cast(TextIO, _StandardError())
    number = logging.getLevelNamesMapping()[level.upper()]
    as_json = not sys.stderr.isatty() if json is None else json
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    logging.getLogger("kombu.transport.redis").addFilter(_NoPayload())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # A job that is given back says so in its own line.
    logging.getLogger("celery.app.trace").setLevel(max(number, logging.ERROR))
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING) if number > logging.DEBUG else number)
