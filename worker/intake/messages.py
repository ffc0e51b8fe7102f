"""What a Celery message asks for: a job of the ledger by its id, or a request that becomes one."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from schemas.bounds import (
    MAX_ATTEMPTS,
    MAX_EXTRAS_BYTES,
    MAX_ID_LENGTH,
    MAX_MODEL_LENGTH,
    find_unkeepable,
    is_keepable_text,
    is_time_ms,
)
from schemas.chat import ChatRequest, InvalidRequest, parse_request
from schemas.job import JobState
from worker.intake.submit import make_job
from worker.storage.cleaning import clean_text
from worker.storage.intake import LONGEST_REFUSED_BODY, NewJob

_OPTIONS = ("custom_id", "batch", "max_attempts", "metadata")
_BATCH_ID = re.compile(r"batch_[0-9a-fA-F]{32}")
_MOST_PROBLEMS = 20
_LONGEST_NAME_SHOWN = 60
_LONGEST_MESSAGE = 4000


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat request as a producer sent it, with its options. Times are UTC milliseconds."""

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
    """The job of a request. Its id is the task id. Raises InvalidRequest with every problem at once."""
    problems = check_task_id(task_id)
    try:
        request = parse_request(
            asked.request, allow_zero_temperature=allow_zero_temperature, default_model=default_model
        )
    except InvalidRequest as exc:
        raise InvalidRequest(problems + exc.errors + _asked_problems(asked)) from None
    problems += _asked_problems(asked)
    if problems:
        raise InvalidRequest(problems)
    return _job(task_id, request, asked, endpoint)


def build_refused(
    task_id: str, asked: Asked, problems: list[str], *, endpoint: str, ended_as: JobState = JobState.FAILED
) -> NewJob:
    """The job of a message that ends on arrival: refused, revoked or expired. Raises nothing.

    Parts of the message that cannot be stored are left out. So is a body of more than 16 KiB.
    """
    model = asked.request.get("model") if isinstance(asked.request, Mapping) else None
    name = (clean_text(model) or "")[:MAX_MODEL_LENGTH] if isinstance(model, str) else ""
    request = ChatRequest.model_construct(model=name or "unknown", messages=[])
    bare = Asked(
        request=None,
        envelope=None if _extras_problem(asked.envelope) else asked.envelope,
        expires_at_ms=None if _time_problems(asked) else asked.expires_at_ms,
    )
    job = _job(make_row_id(task_id), request, bare, endpoint)
    return replace(job, body=_dump(asked.request), ended_as=ended_as, failure_message=_join(problems) or None)


def make_row_id(task_id: str) -> str:
    """The task id if it can be a job's id; else an id that is made of it, and is the same each time."""
    if 0 < len(task_id) <= MAX_ID_LENGTH and task_id.isprintable():
        return task_id
    return "odd-" + hashlib.sha256(task_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def check_task_id(task_id: Any) -> list[str]:
    """The problems of a task id that is to be a job's id; empty if there are none."""
    if (
        not isinstance(task_id, str)
        or not task_id
        or len(task_id) > MAX_ID_LENGTH
        or not task_id.isascii()
        or not task_id.isprintable()
    ):
        return [f"task_id: must be 1 to {MAX_ID_LENGTH} printable ASCII characters"]
    return []


def read_time_ms(value: Any) -> int | None:
    """UTC milliseconds of a time in any of Celery's forms: a datetime, an ISO text, or seconds from now.

    Raises InvalidRequest. Its text does not quote the value: a foreign header may hold anything.
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


def _asked_problems(asked: Asked) -> list[str]:
    """The problems of the options."""
    options = asked.options
    odd = [str(name) for name in options if name not in _OPTIONS]
    problems = [f"{_shorten(name)}: is no option; the options are {', '.join(_OPTIONS)}" for name in odd]
    for name in ("custom_id", "batch"):
        value = options.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or not 0 < len(value) <= 512:
            problems.append(f"{name}: must be text of 1 to 512 characters")
        elif not is_keepable_text(value):
            problems.append(f"{name}: must not hold U+0000 or half of a surrogate pair")
        elif name == "batch" and _BATCH_ID.fullmatch(value):
            problems.append(
                "batch: has the form of an id that `antrean run` and `antrean submit` make: choose a name"
            )
    attempts = options.get("max_attempts")
    if attempts is not None and (type(attempts) is not int or not 1 <= attempts <= MAX_ATTEMPTS):
        problems.append(f"max_attempts: must be a whole number of 1 to {MAX_ATTEMPTS}")
    metadata = options.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        problems.append("metadata: must be an object")
    else:
        problems += [f"metadata: {problem}" for problem in [_extras_problem(metadata)] if problem]
    problems += [f"callbacks and what goes with them: {p}" for p in [_extras_problem(asked.envelope)] if p]
    if asked.priority is not None and type(asked.priority) is not int:
        problems.append("priority: must be a whole number, 0 to 9")
    return problems + _time_problems(asked)


def _time_problems(asked: Asked) -> list[str]:
    times = {"expires": asked.expires_at_ms, "eta or countdown": asked.not_before_ms}
    return [
        f"{name}: must be a time before the year 10000"
        for name, at_ms in times.items()
        if at_ms is not None and not is_time_ms(at_ms)
    ]


def _extras_problem(value: Mapping[str, Any] | None) -> str | None:
    """Why the value cannot be stored in a JSON column; None: it can."""
    if not value:
        return None
    problem = find_unkeepable(value, with_text=True)
    if problem is not None:
        return problem
    try:
        written = json.dumps(value)
    except (TypeError, ValueError):
        return "cannot be written as JSON"
    if len(written) > MAX_EXTRAS_BYTES:
        return f"must be at most {MAX_EXTRAS_BYTES // 1024} KiB"
    return None


def _join(problems: list[str]) -> str:
    rest = len(problems) - _MOST_PROBLEMS
    said = "; ".join([*problems[:_MOST_PROBLEMS], *([f"and {rest} more"] if rest > 0 else [])])
    return said[:_LONGEST_MESSAGE]


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME_SHOWN else name[:_LONGEST_NAME_SHOWN] + "…"


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
        written = orjson.dumps(value)
    except TypeError:  # lone surrogates, too deep, or no JSON: the message is refused anyway
        return "null"
    return written.decode() if len(written) <= LONGEST_REFUSED_BODY else "null"
