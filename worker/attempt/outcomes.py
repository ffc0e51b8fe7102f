"""The outcome of a call, as a value that `worker/storage/transitions.py` records. Pure."""

from __future__ import annotations

from collections.abc import Callable

from api_client.answers import Answer
from api_client.reasoning import split_reasoning
from schemas.completion import Usage as Tokens
from schemas.failure import Failure, Spent
from worker.attempt.judge import Judgement
from worker.attempt.report import Report, Verdict
from worker.policy.cost import LARGEST_COUNT, Price, compute_cost
from worker.storage.outcomes import ClaimedJob, Recorded, Setback, Success, Usage

FindPrice = Callable[..., Price | None]  # of a model that has the names given, the most exact first


def make_success(
    job: ClaimedJob,
    answer: Answer,
    *,
    started_at_ms: int,
    ended_at_ms: int,
    find_price: FindPrice,
    endpoint: str | None = None,
) -> Success:
    """The paid answer of a call that began and ended then. `endpoint`: see `Success`."""
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
        endpoint=endpoint,
        usage=_usage_of(completion.usage, job, find_price, completion.model)
        or _unsaid_usage(completion.model or job.model, job, find_price),
    )


def make_setback(
    job: ClaimedJob,
    failure: Failure,
    judged: Judgement,
    *,
    started_at_ms: int,
    ended_at_ms: int,
    latency_s: float | None,
    find_price: FindPrice,
    endpoint: str | None = None,
) -> Setback:
    """The failure of a call, with what follows from it. `endpoint`: see `Setback`."""
    return Setback(
        claim=job.claim,
        started_at_ms=started_at_ms,
        ended_at_ms=ended_at_ms,
        latency_ms=None if latency_s is None else round(latency_s * 1000),
        failure=failure,
        not_before_ms=judged.not_before_ms,
        burns=judged.burns,
        is_blocked=judged.is_blocked,
        endpoint=endpoint,
        usage=_usage_of(failure.spent, job, find_price),
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


def _usage_of(
    tokens: Tokens | Spent | None, job: ClaimedJob, find_price: FindPrice, model: str | None = None
) -> Usage | None:
    """What an answer took, counts as large as the ledger keeps them at most; None where it did not say."""
    if tokens is None:
        return None
    answered_by = model or getattr(tokens, "model", None) or job.model
    prompt_tokens = min(tokens.prompt_tokens, LARGEST_COUNT)
    completion_tokens = min(tokens.completion_tokens, LARGEST_COUNT)
    cached_tokens = min(tokens.cached_tokens, LARGEST_COUNT)
    return Usage(
        model=answered_by,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=min(tokens.total_tokens, LARGEST_COUNT),
        cached_tokens=cached_tokens,
        reasoning_tokens=min(tokens.reasoning_tokens, LARGEST_COUNT),
        cost_nano=compute_cost(
            find_price(answered_by, job.model),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=cached_tokens,
        ),
    )


def _unsaid_usage(model: str, job: ClaimedJob, find_price: FindPrice) -> Usage:
    cost_nano = compute_cost(find_price(model, job.model), prompt_tokens=0, completion_tokens=0)
    return Usage(model, cost_nano=cost_nano)
