"""The native producer: `complete_chat.delay(...)` writes a row and publishes its id, from any process."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from schemas.chat import InvalidRequest
from worker.broker.client import broker_address, open_client
from worker.broker.hints import queues_of
from worker.broker.publishing import PromptPublisher, publish
from worker.clock import SystemClock
from worker.ids import new_id
from worker.intake.messages import Asked, build_job
from worker.intake.submit import submit_one
from worker.settings import Settings, load_settings
from worker.storage.engine import Ledger
from worker.storage.identity import fetch_identity
from worker.storage.migrating import prepare_ledger

_lock = threading.Lock()
_opened: _Opened | None = None
_BESIDE = ("custom_id", "batch", "max_attempts", "metadata")
_SERVED = ("priority", "expires", "countdown", "eta")
_CALLBACKS = ("link", "link_error", "chain", "chord")
_PLACES = ("queue", "exchange", "routing_key")
# Options that Celery itself adds: in a group, from its beat, or in a call from another task.
_CELERYS_OWN = ("producer", "add_to_parent", "group_id", "group_index", "root_id", "parent_id", "reply_to")


@dataclass(frozen=True, slots=True)
class _Opened:
    """The connections of this process as a producer. `pid`: a forked process must open its own."""

    pid: int
    settings: Settings
    ledger: Ledger
    publisher: PromptPublisher


def produce(asked: Asked, *, task_id: str | None = None) -> str:
    """Writes the job down, publishes it at once, and returns its id. If the broker is away, the relay publishes it.

    A broker that is away delays the first call by 0.2 s, and later calls not at all.
    The same `task_id` with the same request is the same job. The same `task_id` with another request is an error; so is
    a custom_id that another request of the batch has. Then nothing is written or published.
    Raises InvalidRequest with every problem at once, SettingsError, NotMigrated or DatabaseAway.
    """
    here = _open()
    settings = here.settings
    job = build_job(
        new_id() if task_id is None else task_id,
        asked,
        endpoint=settings.endpoint,
        default_model=settings.model,
        allow_zero_temperature=settings.allow_zero_temperature,
    )
    is_published = job.not_before_ms is None and not here.publisher.is_away()
    hand_over = here.publisher.publish if is_published else None
    submit_one(here.ledger, job, clock=SystemClock(), publish=hand_over)
    return job.id


def _open() -> _Opened:
    """Settings, ledger and broker of this process."""
    global _opened
    with _lock:
        if _opened is None or _opened.pid != os.getpid():
            if _opened is not None:
                _opened.ledger.engine.dispose(close=False)
            settings = load_settings()
            ledger = prepare_ledger(settings)
            with ledger.read() as connection:
                queues = queues_of(fetch_identity(connection), settings.endpoint)
            hand_over = partial(publish, open_client(broker_address(settings)), queues=queues)
            _opened = _Opened(os.getpid(), settings, ledger, PromptPublisher(hand_over))
        return _opened


def check_options(options: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for Celery options that antrean does not serve. They would be dropped without a word."""
    problems = []
    for name, value in options.items():
        if value is None or value in ([], (), {}) or name in _SERVED or name in _CELERYS_OWN:
            continue
        if name in _BESIDE:
            why = f"stands beside the request, apply_async([request], {{{name!r}: …}}), or in delay(request, {name}=…)"
        elif name == "idempotency_key":
            why = "is the task's id here, task_id=…"
        elif name in _CALLBACKS:
            why = "callbacks, chains and chords are not served: look into the ledger for the job's end and its answer"
        elif name in _PLACES:
            why = "a job lies in its endpoint's own queue: choose the endpoint, by ANTREAN_BASE_URL"
        elif name == "ignore_result" and value is True:
            continue
        else:
            why = f"is not served; the options are task_id, {', '.join(_SERVED)}"
        problems.append(f"{name}: {why}")
    if problems:
        raise InvalidRequest(problems)


def read_call(args: Any, kwargs: Any) -> tuple[Any, Mapping[str, Any]]:
    """The request and the options of a call such as `delay(request, custom_id=…)` or `kwargs={"request": …}`."""
    options = dict(kwargs or {})
    positional = list(args or ())
    if len(positional) > 1:
        options["positional arguments"] = len(positional)  # a name that is no option: it is refused later
    request = positional[0] if positional else options.pop("request", None)
    return request, options
