"""What an endpoint says is left, and what is reserved for a call."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.allowances import (
    LONGEST_MS,
    Window,
    begin_calls,
    count_allowed,
    note_remaining,
    reserve_tokens,
)

NOW = 1_000_000
TEN = Window(10, NOW + 30_000)


@pytest.mark.parametrize(
    ("window", "remaining", "reset_s", "after"),
    [
        (None, 10, 30.0, TEN),
        (None, 0, 0.25, Window(0, NOW + 250)),
        (None, None, 30.0, None),
        (None, -1, 30.0, None),
        (None, 10, None, None),
        (None, 10, math.nan, None),
        (None, 10, 0.0, None),
        (None, 10, -3.0, None),
        (None, 0, math.inf, Window(0, NOW + LONGEST_MS)),
        (TEN, 7, 30.0, Window(7, NOW + 30_000)),  # others use it as well
        (TEN, 12, 29.0, TEN),  # an answer from before
        (TEN, 12, 31.0, TEN),  # whole seconds
        (TEN, 12, 60.0, Window(12, NOW + 60_000)),  # the next window
        (TEN, None, None, TEN),
        (Window(0, NOW), None, None, None),  # over
        (Window(0, NOW), 5, 10.0, Window(5, NOW + 10_000)),
    ],
)
def test_what_is_said_becomes_a_window(
    window: Window | None, remaining: int | None, reset_s: float | None, after: Window | None
) -> None:
    assert note_remaining(window, remaining=remaining, reset_s=reset_s, now_ms=NOW) == after


@pytest.mark.parametrize(
    ("window", "cost", "allowed"),
    [(None, 1, None), (TEN, 1, 10), (TEN, 3, 3), (TEN, 11, 0), (TEN, 0, 10), (Window(0, NOW), 1, None)],
)
def test_so_many_calls_may_begin_until_it_resets(
    window: Window | None, cost: int, allowed: int | None
) -> None:
    assert count_allowed(window, cost=cost, now_ms=NOW) == allowed


@given(st.integers(0, 1000), st.lists(st.integers(1, 50), max_size=50))
def test_calls_that_begin_never_cost_more_than_what_was_left(left: int, wishes: list[int]) -> None:
    window: Window | None = Window(left, NOW + 1000)
    begun = 0
    for wish in wishes:
        granted = min(wish, count_allowed(window, now_ms=NOW) or 0)
        window = begin_calls(window, units=granted)
        begun += granted
    assert begun <= left
    assert begun == min(left, sum(wishes))


def test_nothing_is_spent_of_a_window_that_is_not_known() -> None:
    assert begin_calls(None, units=3) is None


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
