"""Celery's strategy for our task, without its timers: an ETA is the ledger's (invariant 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker.strategy import default as celery_default

from worker.broker.hints import hinted_job, read_body
from worker.consume.foreign import NOT_BEFORE_HEADER

__all__ = ["NOT_BEFORE_HEADER", "default"]


def default(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """Celery's handler of one message, handed a message whose ETA is put aside for the ledger."""
    handle = celery_default(task, app, consumer, **options)

    def handle_without_eta(
        message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **kwargs: Any
    ) -> Any:
        job_id = hinted_job(message)
        if job_id is not None:
            message._decoded_cache = read_body(job_id)  # known without decoding it
        headers = message.headers
        if headers and headers.get("eta"):
            headers[NOT_BEFORE_HEADER] = headers["eta"]
            headers["eta"] = None
        return handle(message, body, ack, reject, callbacks, **kwargs)

    return handle_without_eta
