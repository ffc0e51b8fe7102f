"""The native producer: `complete_chat.delay(...)` writes a row and publishes its id, from any process."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlalchemy import Connection

from schemas.chat import InvalidRequest
from worker.clock import SystemClock
from worker.hints import Queues, queues_of
from worker.ids import new_id
from worker.messages import Asked, build_job
from worker.publisher import publish
from worker.settings import Settings, load_settings
from worker.storage.batches import CLOSED_BATCH, ensure_open_batches, fetch_closed
from worker.storage.engine import Ledger
from worker.storage.identity import fetch_identity
from worker.storage.migrating import prepare_ledger
from worker.submit import submit_one

_lock = threading.Lock()
_opened: tuple[int, Settings, Ledger, Queues] | None = None
_known_batches: set[str] = set()


def produce(asked: Asked, *, task_id: str | None = None) -> str:
    """The id of the job, written down and published at once; the broker may be away, the relay sees to it.

    The same `task_id` with the same request is the same job. With another request, and so with a custom_id that
    names another request of its batch, it is a problem, and nothing is written or published.
    Raises InvalidRequest with every problem at once, SettingsError, NotMigrated or DatabaseAway.
    """
    settings, ledger, queues = _open()
    job = build_job(
        new_id() if task_id is None else task_id,
        asked,
        endpoint=settings.endpoint,
        default_model=settings.model,
        allow_zero_temperature=settings.allow_zero_temperature,
    )
    if job.batch_id and job.batch_id not in _known_batches:
        ledger.run(partial(_open_batch, batch_id=job.batch_id, endpoint=settings.endpoint))
        _known_batches.add(job.batch_id)
    hand_over = partial(publish, queues=queues) if job.not_before_ms is None else None
    submit_one(ledger, job, clock=SystemClock(), publish=hand_over)
    return job.id


def _open_batch(connection: Connection, batch_id: str, endpoint: str) -> None:
    """Raises InvalidRequest where the batch is one of a file or a folder."""
    ensure_open_batches(connection, [batch_id], endpoint=endpoint, now_ms=SystemClock().now_ms())
    if fetch_closed(connection, [batch_id]):
        raise InvalidRequest([CLOSED_BATCH])


def _open() -> tuple[Settings, Ledger, Queues]:
    """Settings, ledger and its queues; opened anew after a fork, which must not share connections."""
    global _opened
    with _lock:
        if _opened is None or _opened[0] != os.getpid():
            if _opened is not None:
                _opened[2].engine.dispose(close=False)
            settings = load_settings()
            ledger = prepare_ledger(settings)
            with ledger.read() as connection:
                queues = queues_of(fetch_identity(connection), settings.endpoint)
            _opened = (os.getpid(), settings, ledger, queues)
        return _opened[1:]


def refuse_misplaced(options: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for what belongs beside the request, but was handed to Celery, which would drop it."""
    problems = [
        f"{name}: stands beside the request, apply_async([request], {{{name!r}: …}}), or in delay(request, {name}=…)"
        for name in ("custom_id", "batch", "max_attempts", "metadata")
        if options.get(name) is not None
    ]
    if options.get("idempotency_key") is not None:
        problems.append("idempotency_key: is the task's id here, task_id=…")
    if problems:
        raise InvalidRequest(problems)


def read_call(args: Any, kwargs: Any) -> tuple[Any, Mapping[str, Any]]:
    """The request and the options of a call such as `delay(request, custom_id=…)` or `kwargs={"request": …}`."""
    options = dict(kwargs or {})
    positional = list(args or ())
    if len(positional) > 1:
        options["positional arguments"] = len(positional)  # refused by name: there is only one
    request = positional[0] if positional else options.pop("request", None)
    return request, options
