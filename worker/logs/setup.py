"""Sets up logging: static events with fields, on standard error. Never a prompt, a completion or a key."""

from __future__ import annotations

import logging
import sys
from typing import Any, NoReturn

import structlog

from worker.logs.sink import take_event, take_over, tell_crashes


def configure_logs(level: str = "info", *, json: bool | None = None) -> None:
    """Sends structlog's events, the standard library's records and crashes to standard error, one line each.

    JSON unless standard error is a terminal, or as `json` says. A process calls this first of all, so that even early
    errors are logged without the texts that they quote. It may be called again when the settings are read.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    take_over(number, as_json=not sys.stderr.isatty() if json is None else json)
    tell_crashes()
    structlog.configure(
        processors=[_take],
        # The sink filters by level, because its level can be changed later.
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _take(_logger: Any, method: str, facts: Any) -> NoReturn:
    take_event(method, facts)
    raise structlog.DropEvent  # the sink has written the event
