"""Messages that are more than hints: each names a job, or becomes a row with its own request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from kombu.utils import json

from schemas.chat import InvalidRequest
from schemas.failure import FailureKind
from schemas.job import JobState
from worker.attempt.report import Report, Verdict
from worker.consume.foreign import NOT_BEFORE_HEADER, REFUSED_HEADER
from worker.intake.messages import Asked, build_job, build_refused, make_row_id, read_time_ms
from worker.intake.producing import read_call
from worker.settings import Settings
from worker.storage.errors import WriterStopped
from worker.storage.intake import NewJob, make_bare
from worker.storage.writer import GroupWriter

log = structlog.get_logger(__name__)
_CALLBACKS = ("callbacks", "errbacks", "chain", "chord")
_ENVELOPE = (*_CALLBACKS, "group", "group_index", "root_id", "parent_id", "reply_to", "correlation_id")


def read_message(request: Any, settings: Settings) -> str | NewJob:
    """The id of the job that a message names, or a new job with the message's own request.

    The new job is refused if the request is not valid. `request` is what `worker.consume.request` made of the message.
    """
    facts = {**request.request_dict, **(request.embedded or {})}
    problems = [str(problem) for problem in facts.get(REFUSED_HEADER) or ()]
    named = dict(request.kwargs)
    job_id = named.pop("job_id", None)
    if job_id is not None and not problems:
        if isinstance(job_id, str) and make_row_id(job_id) == job_id:
            return job_id
        problems = ["job_id: must be the id of a job"]
    asked_for, options = read_call(request.args, named)
    try:
        if problems:
            raise InvalidRequest(problems)
        asked = _asked(facts, asked_for, options)
    except InvalidRequest as exc:
        bare = Asked(request=asked_for)
        return build_refused(str(request.id), bare, exc.errors, endpoint=settings.endpoint)
    return adopt(str(request.id), asked, settings)


def adopt(task_id: str, asked: Asked, settings: Settings) -> NewJob:
    """The job of a message's own request. It is refused, with its problems, if the request is not valid."""
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
    """The job of a message that was revoked or expired before it ran. None if the message names a job by its id."""
    kwargs = request.kwargs if isinstance(request.kwargs, Mapping) else {}
    if kwargs.get("job_id") is not None:
        return None
    args = request.args or ()
    asked = Asked(request=args[0] if args else kwargs.get("request"))
    return build_refused(str(request.id), asked, [], endpoint=settings.endpoint, ended_as=ended_as)


def write_down(writer: GroupWriter, job: NewJob, *, now_ms: int) -> Report | None:
    """Writes the row of a message's own request. Blocks until it is written. Raises WriterStopped.

    Returns the report of a message whose job has ended or waits, and None for a job that is to be claimed. A job that
    the database does not take is written without its content, so that the message is neither lost nor delivered for
    ever.
    """
    try:
        writer.write_down(job, is_urgent=not job.is_bulk)
    except WriterStopped:
        raise
    except Exception as exc:
        # The last resort for what the database does not take as it is.
        log.error("message.unstorable", task_id=job.id, error=type(exc).__name__)
        job = make_bare(job)
        try:
            writer.write_down(job)
        except WriterStopped:
            raise
        except Exception as again:
            log.error("message.lost", task_id=job.id, error=type(again).__name__)
    if job.ended_as is not None:
        return Report(Verdict.FAILED, "failed: invalid_request", failure=FailureKind.INVALID_REQUEST)
    if job.not_before_ms is not None:
        return Report(Verdict.WAITING, "waits for its time", max(0.0, (job.not_before_ms - now_ms) / 1000))
    return None


def pack_envelope(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The facts that a hint does not carry and the ledger keeps, as plain JSON. None if there are none.

    Raises InvalidRequest.
    """
    kept = {name: value for name, value in facts.items() if value not in (None, [], (), {})}
    if not kept:
        return None
    try:
        plain: dict[str, Any] = json.loads(json.dumps(kept))
    except (TypeError, ValueError, AttributeError, RecursionError):
        raise InvalidRequest(["callbacks and what goes with them: cannot be written as JSON"]) from None
    return plain


def _asked(facts: Mapping[str, Any], request: Any, options: Mapping[str, Any]) -> Asked:
    kept = {name: facts.get(name) for name in _ENVELOPE}
    for name in ("root_id", "correlation_id"):
        if kept[name] == facts["id"]:
            kept[name] = None
    return Asked(
        request=request,
        options=options,
        priority=facts["delivery_info"]["priority"],
        expires_at_ms=read_time_ms(facts.get("expires")),
        not_before_ms=read_time_ms(facts.get(NOT_BEFORE_HEADER)),
        envelope=pack_envelope(kept),
    )
