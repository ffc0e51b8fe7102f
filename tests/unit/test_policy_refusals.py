"""Which failures ask for fewer calls at once, and which say that the endpoint has no such model."""

from __future__ import annotations

import pytest

from schemas.failure import Failure, FailureKind
from worker.policy.refusals import asks_for_less, lacks_model

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


@pytest.mark.parametrize(
    ("failure", "is_lack"),
    [
        (Failure(K.REJECTED, "The model `m` does not exist.", http_status=404), True),
        (Failure(K.REJECTED, "Model m not found", http_status=404), True),
        (Failure(K.REJECTED, "no such assistant", http_status=404), False),
        (Failure(K.REJECTED, "the model takes no images", http_status=400), False),
        (Failure(K.SERVER_ERROR, "the model is loading", http_status=503), False),
    ],
)
def test_a_404_that_speaks_of_the_model_says_that_it_is_not_there(failure: Failure, is_lack: bool) -> None:
    assert lacks_model(failure) is is_lack
