"""The outcome of a call, as a value that `worker/storage/transitions.py` records. Pure."""

from __future__ import annotations

from api_client.answers import Answer
from api_client.reasoning import split_reasoning
from schemas.completion import Usage as Tokens
from schemas.failure import Failure, Spent
from worker.attempt.judge import Judgement
from worker.attempt.report import Report, Verdict
from worker.storage.outcomes import ClaimedJob, Recorded, Setback, Success, Usage


def make_success(job: ClaimedJob, answer: Answer, *, started_at_ms: int, ended_at_ms: int) -> Success:
    """The paid answer of a call that began and ended then."""
    completion = answer.completion
    choice = completion.choices[0]
    reasoned = split_reasoning(choice.message)
    return Success(
        claim=job.claim,
        started_at_ms=started_at_ms,
        ended_at_ms=ended_at_ms,
        latency_ms=round(answer.latency_s * 1000),
        http_status=answer.http_status,
        request_id=answer.request_id,
        finish_reason=choice.finish_reason,
        answer=reasoned.answer,
        reasoning=reasoned.reasoning,
        is_reasoning_unclosed=reasoned.is_unclosed,
        raw=answer.raw,
        usage=_usage_of(completion.usage, job, completion.model) or Usage(completion.model or job.model),
    )


def make_setback(
    job: ClaimedJob,
    failure: Failure,
    judged: Judgement,
    *,
    started_at_ms: int,
    ended_at_ms: int,
    latency_s: float | None,
) -> Setback:
    """The failure of a call, with what follows from it."""
    return Setback(
        claim=job.claim,
        started_at_ms=started_at_ms,
        ended_at_ms=ended_at_ms,
        latency_ms=None if latency_s is None else round(latency_s * 1000),
        failure=failure,
        not_before_ms=judged.not_before_ms,
        burns=judged.burns,
        is_blocked=judged.is_blocked,
        usage=_usage_of(failure.spent, job),
    )


def report_success(success: Success, recorded: Recorded) -> Report:
    """The same for people."""
    tokens, reason = success.usage.total_tokens, success.finish_reason or "no finish reason"
    summary = f"{tokens} tokens · {reason} · {success.latency_ms / 1000:.1f} s"
    if recorded is Recorded.UNUSED:
        summary += " · came second, kept as usage only"
    return Report(Verdict.SUCCEEDED, summary, retries=success.claim.number - 1)


def report_setback(setback: Setback) -> Report:
    """The same for people."""
    kind = setback.failure.kind
    if setback.not_before_ms is None:
        return Report(Verdict.FAILED, f"failed: {kind.value}", failure=kind, retries=setback.claim.number - 1)
    wait_s = max(0.0, (setback.not_before_ms - setback.ended_at_ms) / 1000)
    return Report(Verdict.WAITING, f"waits: {kind.value}", wait_s, kind, setback.claim.number)


def _usage_of(tokens: Tokens | Spent | None, job: ClaimedJob, model: str | None = None) -> Usage | None:
    """What an answer cost; None where it did not say."""
    if tokens is None:
        return None
    return Usage(
        model=model or getattr(tokens, "model", None) or job.model,
        prompt_tokens=tokens.prompt_tokens,
        completion_tokens=tokens.completion_tokens,
        total_tokens=tokens.total_tokens,
        cached_tokens=tokens.cached_tokens,
        reasoning_tokens=tokens.reasoning_tokens,
    )
