"""What the sums over the calls of an epoch say."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.flow import NOTHING, Flow, call_time, one_answer

CALLS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**5)), min_size=1, max_size=60)


def flow_of(*calls: tuple[int, int]) -> Flow:
    """Calls as (ms, output tokens)."""
    total = NOTHING
    for call_ms, tokens_out in calls:
        total += one_answer(call_ms=call_ms, tokens=tokens_out, tokens_out=tokens_out)
    return total


@given(CALLS, st.integers(0, 60))
def test_parts_of_a_flow_add_up_to_the_whole(calls: list[tuple[int, int]], at: int) -> None:
    assert flow_of(*calls[:at]) + flow_of(*calls[at:]) == flow_of(*calls)


def test_a_call_of_an_earlier_value_has_only_ended() -> None:
    assert one_answer(call_ms=900, tokens=10, tokens_out=5, is_counted=False) == Flow(ended=1)


def test_calls_of_one_length_take_their_average() -> None:
    time = call_time(flow_of(*[(400, 100), (600, 100)] * 8))
    assert time.ms == 500
    assert time.length == 100
    assert time.unit_ms == 5
    assert time.noise == pytest.approx(0.2 / 4, rel=0.1)  # 20 % by 16 calls


def test_short_calls_tell_how_long_long_ones_take() -> None:
    """The first answers of a window are the short ones: they are no sign of speed."""
    first = flow_of(*[(100 + 10 * tokens, tokens) for tokens in range(10, 60)])
    later = flow_of(*[(100 + 10 * tokens, tokens) for tokens in range(10, 500)])
    assert call_time(first, length=300).ms == pytest.approx(3100)
    assert call_time(later, length=300).ms == pytest.approx(3100)
    assert call_time(first).ms < 500


def test_a_line_through_a_few_lengths_does_not_make_a_call_four_times_faster() -> None:
    flow = flow_of(*[(1000, 100), (2000, 101)] * 4)
    assert call_time(flow, length=1).ms == 375


def test_a_length_far_from_those_that_were_seen_is_known_less_well() -> None:
    rng = random.Random(1)
    flow = flow_of(*[(round(10 * n * rng.uniform(0.8, 1.2)), n) for n in range(100, 140)])
    assert call_time(flow, length=120).noise < 0.04 < call_time(flow, length=400).noise


def test_without_usage_a_call_is_a_call() -> None:
    time = call_time(flow_of((100, 0), (300, 0), (200, 0), (200, 0)))
    assert (time.ms, time.unit_ms, time.length) == (200, 200, 0)


@pytest.mark.parametrize("calls", [[(500, 10)], [(500, 10), (600, 20), (400, 5)]])
def test_up_to_three_answers_say_nothing_for_sure(calls: list[tuple[int, int]]) -> None:
    assert call_time(flow_of(*calls)).noise == 1.0


@given(CALLS, st.none() | st.floats(0, 10**6))
def test_a_call_takes_some_time_whatever_was_seen(calls: list[tuple[int, int]], length: float | None) -> None:
    time = call_time(flow_of(*calls), length=length)
    assert time.ms > 0
    assert 0 <= time.noise <= 1


def test_the_noise_is_how_far_such_averages_are_apart() -> None:
    """Of many samples of 40 calls, the estimates differ by what each of them says."""
    rng = random.Random(4)
    times = [
        call_time(
            flow_of(*[(round(20 * n + rng.uniform(0, 3000)), n) for n in rng.choices(range(50, 500), k=40)]),
            length=200,
        )
        for _ in range(200)
    ]
    middle = sum(time.ms for time in times) / len(times)
    apart = (sum((time.ms / middle - 1) ** 2 for time in times) / len(times)) ** 0.5
    told = sum(time.noise for time in times) / len(times)
    assert 0.8 < told / apart < 1.25
