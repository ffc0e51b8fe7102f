"""What Celery keeps of a task that ends otherwise than by returning, without what that costs.

Of every retry, rejection, duplicate and failure Celery makes an ExceptionInfo: it copies the tables of the code of
each frame, its own tracer's among them (some 400 KB), and formats the traceback from the source. For an end that is our
own word nobody reads either: half of what a retry costs, and 70 MB in a worker of 100 slots.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.app import trace
from celery.exceptions import TaskPredicate


class JobFailed(Exception):
    """What Flower shows of a failed job: its kind, never its content."""


class BriefInfo(ExceptionInfo):
    """Celery's, but of our own words (a wait, a duplicate, a failed job) it keeps the word alone."""

    traceback: str

    def __init__(
        self,
        exc_info: tuple[type[BaseException], BaseException, TracebackType | None] | None = None,
        internal: bool = False,
    ) -> None:
        kind, exception, tb = exc_info or sys.exc_info()
        if not isinstance(exception, (TaskPredicate, JobFailed)):
            super().__init__((kind, exception, tb), internal)
            return
        self.type = kind
        self.exception = ExceptionWithTraceback(exception, "")
        self.traceback = ""
        self.internal = internal


def keep_words_only() -> None:
    """Has Celery's tracer make `BriefInfo`. It takes the name from its module, and offers no other way."""
    tracer: Any = trace
    tracer.ExceptionInfo = BriefInfo
