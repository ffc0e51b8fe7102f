"""What a Celery message asks for: a job of the ledger by its id, or a request that becomes one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from schemas.chat import ChatRequest, InvalidRequest, parse_request
from schemas.job import JobState
from worker.storage.cleaning import clean_text
from worker.storage.intake import NewJob
from worker.submit import make_job

MAX_ID_LENGTH = 255
_OPTIONS = ("custom_id", "batch", "max_attempts", "metadata")


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat request as a producer handed it over, with what it said beside it. Times are UTC milliseconds."""

    request: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    priority: int | None = None
    expires_at_ms: int | None = None
    not_before_ms: int | None = None
    envelope: Mapping[str, Any] | None = None


def build_job(
    task_id: str,
    asked: Asked,
    *,
    endpoint: str,
    default_model: str | None,
    allow_zero_temperature: bool,
) -> NewJob:
    """The job of a request. Its id is the task's. Raises InvalidRequest with every problem at once."""
    problems = check_task_id(task_id)
    try:
        request = parse_request(
            asked.request, allow_zero_temperature=allow_zero_temperature, default_model=default_model
        )
    except InvalidRequest as exc:
        raise InvalidRequest(problems + exc.errors + _option_problems(asked)) from None
    problems += _option_problems(asked)
    if problems:
        raise InvalidRequest(problems)
    return _job(task_id, request, asked, endpoint)


def build_refused(
    task_id: str, asked: Asked, problems: list[str], *, endpoint: str, ended_as: JobState = JobState.FAILED
) -> NewJob:
    """The job of a message that ends where it arrives: refused, revoked or expired."""
    model = asked.request.get("model") if isinstance(asked.request, Mapping) else None
    request = ChatRequest.model_construct(model=model if isinstance(model, str) else "unknown", messages=[])
    bare = Asked(request=None, envelope=asked.envelope, expires_at_ms=asked.expires_at_ms)
    job = _job(clean_text(task_id) or "", request, bare, endpoint)
    return replace(
        job, body=_dump(asked.request), ended_as=ended_as, failure_message="; ".join(problems) or None
    )


def check_task_id(task_id: str) -> list[str]:
    """What is wrong with a task id that is to be a job's id."""
    if not task_id or len(task_id) > MAX_ID_LENGTH or not task_id.isascii() or not task_id.isprintable():
        return [f"task_id: must be 1 to {MAX_ID_LENGTH} printable ASCII characters"]
    return []


def read_time_ms(value: Any) -> int | None:
    """UTC milliseconds of what Celery calls a time: a datetime, an ISO text, or seconds from now.

    Raises InvalidRequest, which does not quote the value: a foreign header may hold anything.
    """
    if value is None:
        return None
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return round((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1000)
        return round((time.time() + float(value)) * 1000)
    except (ValueError, TypeError, OverflowError):
        words = "eta, countdown or expires: must be a time: an ISO text, a datetime or seconds"
        raise InvalidRequest([words]) from None


def _option_problems(asked: Asked) -> list[str]:
    options = asked.options
    problems = [
        f"{name}: is no option; the options are {', '.join(_OPTIONS)}"
        for name in options
        if name not in _OPTIONS
    ]
    for name in ("custom_id", "batch"):
        value = options.get(name)
        if value is not None and (not isinstance(value, str) or not 0 < len(value) <= 512):
            problems.append(f"{name}: must be text of 1 to 512 characters")
    attempts = options.get("max_attempts")
    if attempts is not None and (isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1):
        problems.append("max_attempts: must be a whole number of at least 1")
    metadata = options.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        problems.append("metadata: must be an object")
    return problems


def _job(task_id: str, request: ChatRequest, asked: Asked, endpoint: str) -> NewJob:
    options = asked.options
    job = make_job(
        request,
        endpoint=endpoint,
        idempotency_key=f"task:{task_id}",
        batch_id=clean_text(options.get("batch")) or "",
        custom_id=options.get("custom_id"),
        priority=0 if asked.priority is None else max(0, min(9, asked.priority)),
        max_attempts=options.get("max_attempts"),
        expires_at_ms=asked.expires_at_ms,
    )
    return replace(
        job,
        id=task_id,
        not_before_ms=asked.not_before_ms,
        user_metadata=options.get("metadata"),
        envelope=asked.envelope or None,
    )


def _dump(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # lone surrogates, or what JSON cannot hold: it is refused anyway
        return "null"
