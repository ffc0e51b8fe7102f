"""Which failures say that an endpoint would not take so many calls at once, or has no such model. Pure."""

from __future__ import annotations

from schemas.failure import Failure, FailureKind


def asks_for_less(failure: Failure) -> bool:
    """Whether fewer calls at once may help: a 429, a 402 that means the same, a 503, or a refused connection."""
    if failure.is_local:
        return False
    if failure.kind is FailureKind.UNREACHABLE:
        return not failure.was_sent
    return failure.kind is FailureKind.RATE_LIMITED or failure.http_status == 503


def lacks_model(failure: Failure) -> bool:
    """Whether the endpoint says that it has no such model: a 404 that speaks of the model, not of something else."""
    return failure.http_status == 404 and failure.was_sent and "model" in failure.message.lower()
