"""What an answer costs: whole numbers, never too little, and unknown where the price is."""

from __future__ import annotations

from decimal import Decimal

import pytest

from worker.policy.cost import (
    LARGEST_COST_NANO,
    CostSum,
    Price,
    Rates,
    compute_cost,
    find_dearest,
    sum_costs,
    to_pico,
)

MINI = Price(Rates(input_pico=150_000, output_pico=600_000, cached_pico=75_000))  # $0.15, $0.60, $0.075
TIERED = Price(Rates(1_250_000, 10_000_000), tiers=((200_000, Rates(2_500_000, 15_000_000)),))


@pytest.mark.parametrize(
    ("price", "prompt", "completion", "cached", "nano"),
    [
        (MINI, 1_000_000, 0, 0, 150_000_000),
        (MINI, 1_000_000, 1_000_000, 0, 750_000_000),
        (MINI, 1_000_000, 0, 400_000, 120_000_000),
        (MINI, 0, 1, 0, 600),
        (MINI, 10, 0, 20, 750),  # more cached tokens than the prompt has: all of it was cached
        (MINI, -5, 1, -5, 600),
        (Price(Rates(37_500, 0)), 1, 0, 0, 38),  # 37.5 is rounded up
        (Price(Rates(100, 100)), 1, 0, 0, 1),
        (Price(Rates(1_000, 0)), 10, 0, 5, 10),  # without a price of their own, cached tokens cost the same
        (TIERED, 200_000, 1, 0, 250_010_000),
        (TIERED, 200_001, 1, 0, 500_017_500),  # all tokens cost more once the prompt is longer
        (Price(Rates(0, 0), answer_pico=5_000_000_000), 1, 0, 0, 5_000_000),
        (Price(Rates(10**12, 0)), 2**31, 0, 0, 2_147_483_648_000_000_000),
        (Price(Rates(10**12, 10**12)), 2**33, 2**33, 0, LARGEST_COST_NANO),
    ],
)
def test_a_cost_is_tokens_times_price(
    price: Price, prompt: int, completion: int, cached: int, nano: int
) -> None:
    cost = compute_cost(price, prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
    assert cost == nano


def test_an_unknown_price_is_unknown_and_not_nothing() -> None:
    assert compute_cost(None, prompt_tokens=1, completion_tokens=1) is None


def test_an_answer_that_does_not_say_its_tokens_has_no_known_cost_unless_the_model_is_free() -> None:
    assert compute_cost(MINI, prompt_tokens=0, completion_tokens=0) is None
    assert compute_cost(Price(Rates(0, 0)), prompt_tokens=0, completion_tokens=0) == 0


def test_a_free_model_costs_nothing_however_long_its_answers_are() -> None:
    assert Price(Rates(0, 0)).is_free and Price(Rates(0, 0, 0)).is_free
    assert not MINI.is_free and not Price(Rates(0, 0), answer_pico=1).is_free
    assert not Price(Rates(0, 0), tiers=((10, Rates(1, 0)),)).is_free


def test_a_sum_says_how_much_of_it_is_unknown() -> None:
    found = sum_costs([5, None, 7, None])
    assert found == CostSum(nano=12, unknown=2, answered=4) and found.known_nano == 12
    assert sum_costs([None, None]).known_nano is None
    assert sum_costs([]).known_nano == 0
    assert found + CostSum(1, 0, 1) == CostSum(13, 2, 5)


@pytest.mark.parametrize(
    ("usd", "pico"), [("0.15", 150_000), ("0.0375", 37_500), ("0", 0), ("0.0000004", 0), ("0.0000005", 1)]
)
def test_a_price_a_million_tokens_becomes_picodollars_a_token(usd: str, pico: int) -> None:
    assert to_pico(Decimal(usd)) == pico


CHEAP_OUTPUT = Price(Rates(2_000_000, 1_000), answer_pico=7)


@pytest.mark.parametrize(
    ("prices", "dearest"),
    [
        ([], None),
        ([MINI], MINI),
        ([MINI, MINI], MINI),
        ([MINI, CHEAP_OUTPUT], Price(Rates(2_000_000, 600_000, 2_000_000), answer_pico=7)),
        (
            [TIERED, CHEAP_OUTPUT],
            Price(
                Rates(2_000_000, 10_000_000, 2_000_000),
                answer_pico=7,
                tiers=((200_000, Rates(2_500_000, 15_000_000, 2_500_000)),),
            ),
        ),
    ],
)
def test_the_dearest_price_is_that_of_each_kind_of_token(prices: list[Price], dearest: Price | None) -> None:
    assert find_dearest(prices) == dearest


@pytest.mark.parametrize("prompt", [0, 1, 200_000, 200_001, 300_001])
@pytest.mark.parametrize("cached", [0, 100_000])
def test_no_answer_costs_more_than_at_the_dearest_price(prompt: int, cached: int) -> None:
    steps = Price(Rates(1, 1), tiers=((100_000, Rates(3_000_000, 1)), (300_000, Rates(4_000_000, 9))))
    prices = [MINI, TIERED, CHEAP_OUTPUT, steps]
    dearest = find_dearest(prices)

    def cost(price: Price | None) -> int:
        found = compute_cost(price, prompt_tokens=prompt, completion_tokens=50, cached_tokens=cached)
        assert found is not None
        return found

    assert cost(dearest) >= max(map(cost, prices))
