"""Which failures ask for fewer calls at once."""

from __future__ import annotations

import pytest

from schemas.failure import Failure, FailureKind
from worker.policy.refusals import asks_for_less

K = FailureKind


@pytest.mark.parametrize(
    ("failure", "is_refusal"),
    [
        (Failure(K.RATE_LIMITED, "slow down", http_status=429), True),
        (Failure(K.RATE_LIMITED, "too many in flight", http_status=402), True),
        (Failure(K.SERVER_ERROR, "overloaded", http_status=503), True),
        (Failure(K.SERVER_ERROR, "oh", http_status=500), False),
        (Failure(K.UNREACHABLE, "refused", was_sent=False), True),
        (Failure(K.UNREACHABLE, "reset", was_sent=True), False),
        (Failure(K.UNREACHABLE, "no port left", was_sent=False, is_local=True), False),
        (Failure(K.TIMEOUT, "slow", was_sent=True), False),
        (Failure(K.QUOTA, "empty", http_status=402), False),
        (Failure(K.REJECTED, "no", http_status=400), False),
    ],
)
def test_a_refusal_asks_for_less_at_once(failure: Failure, is_refusal: bool) -> None:
    assert asks_for_less(failure) is is_refusal
