"""The rows that are kept of a call beside its job's state: the attempt, result, usage, and the body of a failure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from schemas.job import ORDINARY_FINISH_REASONS
from worker.policy.cost import LARGEST_COUNT
from worker.storage.cleaning import clean_text
from worker.storage.outcomes import Outcome, Setback, Success, Usage
from worker.storage.prepared import Prepared
from worker.storage.tables import AnyRow, attempts, build_upsert, failure_bodies, results, usage

_KEEP_RESULT = Prepared(partial(build_upsert, table=results, keys=("job_id",)))
_KEEP_ATTEMPT = Prepared(partial(build_upsert, table=attempts, keys=("job_id", "number")))
_KEEP_USAGE = Prepared(partial(build_upsert, table=usage, keys=("job_id", "number")))
_KEEP_FAILURE_BODY = Prepared(partial(build_upsert, table=failure_bodies, keys=("job_id",)))


@dataclass(slots=True)
class Records:
    """The rows to write for one group of calls, by table."""

    attempts: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)
    failure_bodies: list[dict[str, Any]] = field(default_factory=list)

    def add_attempt(self, outcome: Outcome, verdict: str) -> None:
        """Adds an attempt. `verdict`: succeeded, unused, released, lost, or the failure's kind."""
        claim = outcome.claim
        values: dict[str, Any] = {
            "job_id": claim.job_id,
            "number": claim.number,
            "generation": claim.generation,
            "worker_id": claim.worker_id,
            "claim_token": claim.token,
            "endpoint": outcome.endpoint,
            "outcome": verdict,
            "http_status": None,
            "request_id": None,
            "message": None,
            "started_at_ms": outcome.started_at_ms,
            "ended_at_ms": outcome.ended_at_ms,
            "latency_ms": None,
        }
        if isinstance(outcome, Success):
            values["http_status"] = outcome.http_status
            values["request_id"] = clean_text(outcome.request_id)
            values["latency_ms"] = outcome.latency_ms
        elif isinstance(outcome, Setback):
            values["http_status"] = outcome.failure.http_status
            values["request_id"] = clean_text(outcome.failure.request_id)
            values["message"] = clean_text(outcome.failure.message)
            values["latency_ms"] = outcome.latency_ms
        self.attempts.append(values)

    def add_result(self, success: Success) -> None:
        self.results.append(
            {
                "job_id": success.claim.job_id,
                "number": success.claim.number,
                "http_status": success.http_status,
                "request_id": clean_text(success.request_id),
                "finish_reason": clean_text(success.finish_reason),
                "answer": clean_text(success.answer),
                "reasoning": clean_text(success.reasoning),
                "is_reasoning_unclosed": success.is_reasoning_unclosed,
                "raw": success.raw,
                "created_at_ms": success.ended_at_ms,
            }
        )

    def add_usage(self, row: AnyRow, outcome: Success | Setback, tokens: Usage, *, is_used: bool) -> None:
        """Adds the tokens of an answer. `row`: the row of its job. `is_used`: the answer is the job's result."""
        reason = outcome.finish_reason if is_used and isinstance(outcome, Success) else None
        self.usage.append(
            {
                "job_id": outcome.claim.job_id,
                "number": outcome.claim.number,
                "batch_id": row.batch_id,
                "model": clean_text(tokens.model),
                "prompt_tokens": min(tokens.prompt_tokens, LARGEST_COUNT),
                "completion_tokens": min(tokens.completion_tokens, LARGEST_COUNT),
                "total_tokens": min(tokens.total_tokens, LARGEST_COUNT),
                "cached_tokens": min(tokens.cached_tokens, LARGEST_COUNT),
                "reasoning_tokens": min(tokens.reasoning_tokens, LARGEST_COUNT),
                "is_used": is_used,
                "cost_nano": tokens.cost_nano,
                "odd_finish_reason": odd_finish_reason(reason),
                "created_at_ms": outcome.ended_at_ms,
            }
        )

    def add_failure_body(self, job_id: str, body: bytes) -> None:
        self.failure_bodies.append({"job_id": job_id, "raw": body})

    def statements(self) -> Iterator[tuple[Prepared, list[dict[str, Any]]]]:
        """The statements that write the rows, in the order in which they must be executed."""
        yield _KEEP_RESULT, self.results
        yield _KEEP_ATTEMPT, self.attempts
        yield _KEEP_USAGE, self.usage
        yield _KEEP_FAILURE_BODY, self.failure_bodies


def odd_finish_reason(reason: str | None) -> str | None:
    """The finish reason if it is an unusual one, else None. Unusual ones are counted."""
    return None if not reason or reason in ORDINARY_FINISH_REASONS else clean_text(reason)
