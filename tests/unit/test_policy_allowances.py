"""What is reserved for a call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.allowances import reserve_tokens


@pytest.mark.parametrize(
    ("lately", "reserved"),
    [([], 1000), ([0], 0), ([7], 7), ([3, 9, 5], 9), (list(range(1, 21)), 19), (list(range(1, 101)), 95)],
)
def test_what_ninety_five_of_a_hundred_answers_took_is_reserved(lately: list[int], reserved: int) -> None:
    assert reserve_tokens(lately, unknown=1000) == reserved


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=300))
def test_at_most_one_answer_in_twenty_takes_more_than_was_reserved(lately: list[int]) -> None:
    reserved = reserve_tokens(lately, unknown=0)
    assert sum(tokens > reserved for tokens in lately) * 20 <= len(lately)
