"""Budgets: an estimate is never too low where the request sets a bound, and nothing passes the limit."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.budgets import (
    FIRST_COMPLETION_TOKENS,
    Amount,
    Limit,
    estimate,
    estimate_prompt_tokens,
    find_usual,
    goes_on,
    parse_budget,
    read_completion_bound,
)
from worker.policy.cost import Price, Rates

PRICE = Price(Rates(1_000, 2_000))  # one and two nanodollars a token


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("5usd", Limit(nano=5_000_000_000)),
        ("$0.50", Limit(nano=500_000_000)),
        ("$5 USD", Limit(nano=5_000_000_000)),
        ("0.000000001 usd", Limit(nano=1)),
        ("500000tok", Limit(tokens=500_000)),
        (" 500_000 tokens", Limit(tokens=500_000)),
        ("1,000 TOK", Limit(tokens=1_000)),
        ("$1,234,567.50", Limit(nano=1_234_567_500_000_000)),
        ("0tok", Limit(tokens=0)),
    ],
)
def test_a_budget_is_dollars_or_tokens(text: str, limit: Limit) -> None:
    assert parse_budget(text) == limit


@pytest.mark.parametrize(
    "text", ["", "5", "five usd", "$5tok", "-5usd", "0.5tok", "1e3tok", "5eur", "9" * 20 + "tok"]
)
def test_another_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0,50usd", "1,5usd", "$0,500", "1,,000tok", "1,0000tok", "5,usd", "5_usd"])
def test_a_comma_that_is_not_between_thousands_is_refused(text: str) -> None:
    """Half a dollar, as many people write it, must not be a budget of fifty."""
    with pytest.raises(ValueError):
        parse_budget(text)


@pytest.mark.parametrize(
    ("body", "bound"),
    [
        ({}, None),
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 0}, 0),
        ({"max_tokens": 100, "max_completion_tokens": 300}, 300),
        ({"max_tokens": 100, "n": 3}, 300),
        ({"max_tokens": None, "n": 3}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": "7"}, None),
    ],
)
def test_the_bound_of_an_answer_is_the_requests(body: dict[str, object], bound: int | None) -> None:
    assert read_completion_bound(json.dumps(body)) == bound


@pytest.mark.parametrize("body", ["no json", "[1]", "3"])
def test_a_body_that_is_no_request_has_no_bound(body: str) -> None:
    assert read_completion_bound(body) is None


def test_a_prompt_is_estimated_by_its_bytes_and_an_image_by_its_size() -> None:
    assert estimate_prompt_tokens("é" * 10) == 20
    image = '{"url":"data:image/png;base64,' + "A" * 1_000_000 + '"}'
    assert 10_000 < estimate_prompt_tokens(image) < 10_100
    assert estimate_prompt_tokens('{"url":"data:image/png;base64,AAAA"}') > 2_000


@pytest.mark.parametrize(
    "text", ["data: one two", "data:x;base64,AAAA and more words", "data:text/plain,a b"]
)
def test_a_text_that_begins_as_an_image_does_is_estimated_by_its_bytes(text: str) -> None:
    body = json.dumps({"content": text * 10_000})
    assert estimate_prompt_tokens(body) == len(body)


def test_an_answer_without_a_bound_is_estimated_by_what_such_answers_took() -> None:
    body = '{"messages":[]}'
    assert estimate(body, None, usual_tokens=None) == Amount(len(body) + FIRST_COMPLETION_TOKENS, None)
    assert estimate(body, PRICE, usual_tokens=100) == Amount(len(body) + 125, len(body) + 250)


def test_what_is_usual_is_known_after_enough_answers() -> None:
    assert find_usual(range(19)) is None
    assert find_usual([7] * 19 + [900]) == 7
    assert find_usual([7] * 18 + [900, 900]) == 900


@pytest.mark.parametrize(
    ("limit", "taken", "more", "fits"),
    [
        (Limit(tokens=100), Amount(60), Amount(40), True),
        (Limit(tokens=100), Amount(60), Amount(41), False),
        (Limit(tokens=100), Amount(60, None), Amount(40, None), True),
        (Limit(nano=100), Amount(9**9, 60), Amount(9**9, 40), True),
        (Limit(nano=100), Amount(0, 60), Amount(0, 41), False),
        (Limit(nano=100), Amount(0, 0), Amount(1, None), False),  # an unknown price fits no limit in dollars
        (Limit(), Amount(9**9, None), Amount(9**9), True),
    ],
)
def test_more_fits_where_the_whole_stays_within_the_limit(
    limit: Limit, taken: Amount, more: Amount, fits: bool
) -> None:
    assert limit.fits(taken, more) is fits


def test_near_its_end_a_budget_is_tried_again_when_it_is_worth_it() -> None:
    limit, wanted = Limit(tokens=1000), Amount(50)
    assert goes_on(limit, spent=Amount(500), reserved=Amount(100), wanted=wanted)
    assert not goes_on(limit, spent=Amount(700), reserved=Amount(200), wanted=wanted)
    assert goes_on(limit, spent=Amount(950), reserved=Amount(), wanted=wanted)
    assert not goes_on(limit, spent=Amount(951), reserved=Amount(), wanted=wanted)


@given(
    limit=st.integers(0, 5_000),
    jobs=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 100)), max_size=60),
    slots=st.integers(1, 8),
)
def test_what_is_reserved_before_and_settled_after_never_passes_the_limit(
    limit: int, jobs: list[tuple[int, int]], slots: int
) -> None:
    most, spent, calls = Limit(tokens=limit), Amount(), []
    for reserved, percent in jobs:
        held = Amount(sum(amount for amount, _ in calls))
        if most.fits(spent + held, Amount(reserved)):
            calls.append((reserved, reserved * percent // 100))
        if len(calls) >= slots:
            spent += Amount(calls.pop(0)[1])
        assert spent.tokens <= limit
    assert spent.tokens + sum(actual for _, actual in calls) <= limit
