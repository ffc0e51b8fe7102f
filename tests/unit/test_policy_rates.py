"""Rates: what may begin now, and that no minute has more than its limit."""

from __future__ import annotations

import random

import pytest

from worker.policy.rates import BURST_US, MINUTE_US, carry_over, cost_us, settle, take


@pytest.mark.parametrize(
    ("paid_us", "wanted", "granted", "wait_us"),
    [
        (0, 0, 0, 0),
        (0, 100, 6, 100_000),
        (0, 2, 2, 0),
        (600_000, 5, 0, 100_000),
        (550_000, 5, 0, 50_000),
        (500_000, 5, 1, 100_000),
        (-5_000_000, 100, 6, 100_000),
    ],
)
def test_six_hundred_a_minute_are_one_each_tenth_of_a_second_and_six_at_once(
    paid_us: int, wanted: int, granted: int, wait_us: int
) -> None:
    got, paid, wait = take(paid_us, now_us=0, cost_us=cost_us(600), wanted=wanted)
    assert (got, wait) == (granted, wait_us)
    assert paid == max(0, paid_us) + granted * 100_000


# A minute of the last two takes as long as that of all others together.
@pytest.mark.default_cases(6)
@pytest.mark.parametrize("per_minute", [1, 7, 60, 100, 599, 600, 6000, 90_000])
def test_no_minute_has_more_than_its_limit_and_a_burst_and_demand_has_nearly_all_of_it(
    per_minute: int,
) -> None:
    rng, now_us, paid_us = random.Random(per_minute), 0, 0
    begun: list[tuple[int, int]] = []
    wait_us = 0
    while now_us < 5 * MINUTE_US:
        granted, paid_us, wait_us = take(paid_us, now_us=now_us, cost_us=cost_us(per_minute), wanted=10_000)
        begun.append((now_us, granted))
        now_us += max(20_000, min(wait_us, rng.randrange(20_000, 500_000))) if wait_us < 500_000 else wait_us
    burst = max(1, BURST_US // cost_us(per_minute))
    for start_us, _ in begun:
        within = sum(count for at_us, count in begun if start_us <= at_us < start_us + MINUTE_US)
        assert within <= per_minute + burst
    assert sum(count for _, count in begun) >= 5 * per_minute * 0.95


def test_tokens_that_were_reserved_and_not_used_may_be_used_by_others() -> None:
    each = cost_us(60_000, 500)  # half a second
    granted, paid_us, wait_us = take(0, now_us=0, cost_us=each, wanted=9)
    assert (granted, wait_us) == (1, 400_000)
    paid_us = settle(paid_us, now_us=0, per_minute=60_000, back=400)
    assert paid_us == 100_000
    assert take(paid_us, now_us=0, cost_us=each, wanted=9)[0] == 1
    assert settle(paid_us, now_us=0, per_minute=60_000, back=-1000) == 1_100_000


def test_what_was_used_beyond_its_reservation_blocks_for_a_minute_at_most() -> None:
    assert settle(0, now_us=0, per_minute=60, back=-10_000) == MINUTE_US


@pytest.mark.parametrize(("call_ms", "slots"), [(500, 64), (3000, 64), (500, 8)])
def test_tokens_that_come_back_all_at_once_are_used_and_no_minute_has_many_more_than_its_limit(
    call_ms: int, slots: int
) -> None:
    """Each call reserves 1,500 tokens, and uses 700 in the mean; a burst is 2,000."""
    per_minute, each, step_ms = 200_000, 1500, 100
    rng, paid_us = random.Random(call_ms + slots), 0
    ends: list[tuple[int, int]] = []
    used: list[int] = []
    for now_ms in range(0, 300_000, step_ms):
        ended = [tokens for end_ms, tokens in ends if end_ms <= now_ms]
        ends = [one for one in ends if one[0] > now_ms]
        now_us, back = now_ms * 1000, sum(each - tokens for tokens in ended)
        granted, paid_us, _ = take(
            settle(paid_us, now_us=now_us, per_minute=per_minute, back=back),
            now_us=now_us,
            cost_us=cost_us(per_minute, each),
            wanted=slots - len(ends),
            credit_us=cost_us(per_minute, back),
        )
        ends += [(now_ms + call_ms, rng.choice([100, 500, 1500])) for _ in range(granted)]
        used.append(sum(ended))
    assert sum(used) >= 0.95 * 5 * per_minute
    minute = 60_000 // step_ms
    most = max(sum(used[at : at + minute]) for at in range(0, len(used) - minute, 10))
    assert most <= 1.1 * per_minute


def test_what_is_given_back_is_not_saved_up() -> None:
    each = cost_us(60_000, 500)
    paid_us = settle(0, now_us=0, per_minute=60_000, back=100_000)
    granted, paid_us, _ = take(paid_us, now_us=0, cost_us=each, wanted=1, credit_us=cost_us(60_000, 100_000))
    assert (granted, paid_us) == (1, 0)
    assert take(paid_us, now_us=0, cost_us=each, wanted=9)[0] == 1


def test_a_call_beyond_a_whole_minute_is_paid_in_full() -> None:
    each = cost_us(2000, 3000)  # a minute and a half
    granted, paid_us, _ = take(0, now_us=0, cost_us=each, wanted=1)
    paid_us = settle(paid_us, now_us=100_000, per_minute=2000, back=0, each_us=each)
    assert (granted, paid_us) == (1, 90_000_000)


@pytest.mark.parametrize(
    ("before", "per_minute", "paid_us", "expected"),
    [
        (None, 600, MINUTE_US, MINUTE_US),
        (1, 600, MINUTE_US, 100_000),  # one call
        (60, 60, 1_000_000, 1_000_000),
        (600, 60, 600_000, 600_000),
        (1, 600, -5, -5),
    ],
)
def test_what_is_still_to_be_paid_is_as_much_under_a_higher_limit_and_as_long_under_a_lower_one(
    before: int | None, per_minute: int, paid_us: int, expected: int
) -> None:
    assert carry_over(paid_us, now_us=0, before=before, per_minute=per_minute) == expected
