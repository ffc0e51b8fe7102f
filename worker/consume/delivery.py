"""What Celery delivers, read once: which job, and the request where the message carries its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from kombu.utils import json

from schemas.chat import InvalidRequest
from schemas.job import JobState
from worker.attempt.execute import Report, Verdict
from worker.broker.hints import HINT_HEADER, is_bulk_queue
from worker.consume.foreign import NOT_BEFORE_HEADER, REFUSED_HEADER
from worker.consume.request import RETRIES
from worker.intake.messages import Asked, build_job, build_refused, make_row_id, read_time_ms
from worker.settings import Settings
from worker.storage.intake import NewJob

log = structlog.get_logger(__name__)
_CALLBACKS = ("callbacks", "errbacks", "chain", "chord")
_ENVELOPE = (*_CALLBACKS, "group", "group_index", "root_id", "parent_id", "reply_to", "correlation_id")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivered message. `adopt` is None where it only names a job of the ledger."""

    job_id: str
    is_bulk: bool
    adopt: NewJob | None = None
    is_hint: bool = False  # published by us: it may well find that the job is done


def read_delivery(
    context: Any, request: Any, options: Mapping[str, Any], job_id: Any, settings: Settings
) -> Delivery:
    """The delivery of a task's request context and its arguments; a bad one is a job that is refused."""
    is_bulk = is_bulk_queue((context.delivery_info or {}).get("routing_key"))
    headers = context.headers or {}
    task_id = str(context.id)
    problems = [str(problem) for problem in headers.get(REFUSED_HEADER) or ()]
    if job_id is not None and not problems:
        if isinstance(job_id, str) and make_row_id(job_id) == job_id:
            return Delivery(job_id, is_bulk, is_hint=HINT_HEADER in headers)
        problems = ["job_id: must be the id of a job"]
    try:
        if problems:
            raise InvalidRequest(problems)
        asked = _asked(context, request, options)
    except InvalidRequest as exc:
        bare = Asked(request=request)
        job = build_refused(task_id, bare, exc.errors, endpoint=settings.endpoint)
    else:
        job = adopt(task_id, asked, settings)
    return Delivery(job.id, is_bulk, job)


def adopt(task_id: str, asked: Asked, settings: Settings) -> NewJob:
    """The job of a message's own request, refused with its problems where it is not valid."""
    try:
        return build_job(
            task_id,
            asked,
            endpoint=settings.endpoint,
            default_model=settings.model,
            allow_zero_temperature=settings.allow_zero_temperature,
        )
    except InvalidRequest as exc:
        return build_refused(task_id, asked, exc.errors, endpoint=settings.endpoint)


def adopt_ended(request: Any, *, ended_as: JobState, settings: Settings) -> NewJob | None:
    """The job of a message that was revoked or expired before it ran; None where it names one by its id."""
    kwargs = request.kwargs if isinstance(request.kwargs, Mapping) else {}
    if kwargs.get("job_id") is not None:
        return None
    args = request.args or ()
    asked = Asked(request=args[0] if args else kwargs.get("request"))
    return build_refused(str(request.id), asked, [], endpoint=settings.endpoint, ended_as=ended_as)


def log_delivery(delivery: Delivery, report: Report) -> Report:
    """The report; a foreign message that got no claim is logged besides."""
    if report.verdict is Verdict.NO_CLAIM and not delivery.is_hint:
        log.info("message.no_claim", task_id=delivery.job_id)
    return report


def take_callbacks_away(context: Any) -> None:
    """Celery must not send them itself: a queue of another app would fail the finished task."""
    for name in _CALLBACKS:
        setattr(context, name, None)


def tell_retries(context: Any, report: Report) -> None:
    """The events of this delivery say how often its job was tried before: its message, new for each try, cannot."""
    if report.retries is not None:
        context.delivery_info[RETRIES] = report.retries


def pack_envelope(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What must outlive an id-only republish, as plain JSON; None where there is nothing. Raises InvalidRequest."""
    kept = {name: value for name, value in facts.items() if value not in (None, [], (), {})}
    if not kept:
        return None
    try:
        plain: dict[str, Any] = json.loads(json.dumps(kept))
    except (TypeError, ValueError, AttributeError, RecursionError):
        raise InvalidRequest(["callbacks and what goes with them: cannot be written as JSON"]) from None
    return plain


def _asked(context: Any, request: Any, options: Mapping[str, Any]) -> Asked:
    facts = {name: getattr(context, name, None) for name in _ENVELOPE}
    if facts["root_id"] == context.id:
        facts["root_id"] = None
    if facts["correlation_id"] == context.id:
        facts["correlation_id"] = None
    info = context.delivery_info or {}
    return Asked(
        request=request,
        options=options,
        priority=info.get("priority"),
        expires_at_ms=read_time_ms(context.expires),
        not_before_ms=read_time_ms((context.headers or {}).get(NOT_BEFORE_HEADER)),
        envelope=pack_envelope(facts),
    )
