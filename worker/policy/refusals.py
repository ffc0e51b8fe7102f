"""Which failures say that an endpoint would not take so many calls at once. Pure."""

from __future__ import annotations

from schemas.failure import Failure, FailureKind


def asks_for_less(failure: Failure) -> bool:
    """Whether fewer calls at once may help: a 429, a 402 that means the same, a 503, or a refused connection."""
    if failure.is_local:
        return False
    if failure.kind is FailureKind.UNREACHABLE:
        return not failure.was_sent
    return failure.kind is FailureKind.RATE_LIMITED or failure.http_status == 503
