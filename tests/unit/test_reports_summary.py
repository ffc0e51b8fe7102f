"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.cost import CostSum
from worker.reports.summary import (
    cost_facts,
    describe_cost,
    format_bytes,
    format_cost,
    format_count,
    format_seconds,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.00 s"),
        (0.424, "0.42 s"),
        (9.999, "10.0 s"),
        (59.96, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7380, "2 h 03 min"),
        (86399, "1 d 00 h"),
        (3 * 86400 + 4 * 3600, "3 d 04 h"),
    ],
)
def test_a_span_is_told_in_the_units_that_fit_it(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.floats(min_value=0, max_value=1e9))
def test_no_span_shows_sixty_seconds_or_minutes_or_a_day_of_24_hours(seconds: float) -> None:
    text = format_seconds(seconds)
    assert not text.startswith(("60.0 s", "60 min", "24 h"))
    assert not text.endswith((" 60 s", " 60 min", " 24 h"))


def test_a_count_has_separators_and_its_noun_in_the_right_number() -> None:
    assert format_count(1234) == "1,234"
    assert [format_count(n, "job") for n in (0, 1, 2000)] == ["0 jobs", "1 job", "2,000 jobs"]
    assert format_count(2, "batch", "batches") == "2 batches"


def test_a_size_has_binary_units() -> None:
    assert [format_bytes(n) for n in (512, 1536, 32 * 2**20, 4 * 2**30)] == [
        "512 B",
        "1.5 KiB",
        "32.0 MiB",
        "4.0 GiB",
    ]


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "$0"),
        (1, "$0.000000001"),
        (405_000, "$0.000405"),
        (37_249_999, "$0.0372"),
        (500_000_000, "$0.5"),
        (999_400_000, "$0.999"),
        (999_600_000, "$1.00"),
        (1_234_500_000_000, "$1,234.50"),
    ],
)
def test_an_amount_of_money_has_two_places_and_below_a_dollar_three_digits(nano: int, text: str) -> None:
    assert format_cost(nano) == text


def test_a_cost_says_how_much_of_it_is_not_known() -> None:
    assert describe_cost(CostSum(1_230_000_000, 0, 5)) == "$1.23"
    assert describe_cost(CostSum(1_230_000_000, 12, 20)) == "$1.23 and 12 answers of unknown price"
    assert describe_cost(CostSum(0, 12, 12)) == "cost unknown"
    assert describe_cost(CostSum()) == "$0"
    assert cost_facts(CostSum(1_230_000_000, 12, 20)) == {"cost_usd": 1.23, "unpriced_answers": 12}
    assert cost_facts(CostSum(0, 12, 12)) == {"cost_usd": None, "unpriced_answers": 12}
