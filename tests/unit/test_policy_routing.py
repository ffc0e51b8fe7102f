"""To which endpoint a job goes: which serve its model, and which of them is next by weight."""

from __future__ import annotations

from collections import Counter

import pytest

from worker.policy.routing import choose_by_weight, find_servers, has, list_groups, serves

A, B, C = 0b001, 0b010, 0b100


@pytest.mark.parametrize(
    ("patterns", "model", "is_served"),
    [
        ((), "any", True),
        (("m1",), "m1", True),
        (("m1",), "m10", False),
        (("m1*",), "m1", True),
        (("m1*",), "m10", True),
        (("m1*",), "M10", False),
        (("*",), "", True),
        (("m1", "q*"), "qwen3", True),
        (("m1", "q*"), "llama", False),
    ],
)
def test_a_model_is_served_by_its_name_or_by_its_beginning(
    patterns: tuple[str, ...], model: str, is_served: bool
) -> None:
    assert serves(patterns, model) is is_served


@pytest.mark.parametrize(
    ("models", "model", "lacking", "servers"),
    [
        (((), ()), "m", (), A | B),
        ((("m",), ()), "m", (), A | B),
        ((("m",), ()), "n", (), B),
        ((("m",), ("n",)), "o", (), 0),
        ((("q*",), ("q1",), ("q12",)), "q1", (), A | B),
        ((("q*",), ("q1",), ("q12",)), "q12", (), A | C),
        (((), ()), "m", (0,), B),
        (((), ()), "m", (0, 0), B),
        (
            ((), ()),
            "m",
            (0, 1),
            A | B,
        ),  # all lack it: what is said of a model is then for the jobs to find out
        ((("m",), ()), "n", (1,), B),
    ],
)
def test_the_endpoints_of_a_model(
    models: tuple[tuple[str, ...], ...], model: str, lacking: tuple[int, ...], servers: int
) -> None:
    assert find_servers(models, model, lacking) == servers


@pytest.mark.parametrize(
    ("models", "lacking", "groups"),
    [
        (((),), {}, (A,)),
        (((), ()), {}, (A | B,)),
        ((("m",), ("n",)), {}, (A, B)),
        ((("m",), ()), {}, (B, A | B)),
        ((("q*",), ("q1*",), ("q12",)), {}, (A, A | B, A | B | C)),
        (((), ()), {"m": (0,)}, (B, A | B)),
        ((("m",), ("m",)), {"m": (0,)}, (B,)),
    ],
)
def test_all_sets_of_endpoints_that_a_model_may_have(
    models: tuple[tuple[str, ...], ...], lacking: dict[str, tuple[int, ...]], groups: tuple[int, ...]
) -> None:
    assert list_groups(models, lacking) == groups


def play(weights: dict[int, float], calls: int) -> list[int]:
    credit: dict[int, float] = {}
    chosen = []
    for _ in range(calls):
        index, credit = choose_by_weight(credit, weights)
        chosen.append(index)
    return chosen


@pytest.mark.parametrize(
    ("weights", "calls", "counts"),
    [
        ({0: 1.0}, 5, {0: 5}),
        ({0: 1.0, 1: 1.0}, 10, {0: 5, 1: 5}),
        ({0: 3.0, 1: 1.0}, 400, {0: 300, 1: 100}),
        ({0: 0.5, 1: 0.25, 2: 0.25}, 8, {0: 4, 1: 2, 2: 2}),
        ({1: 5.0, 3: 1.0}, 6, {1: 5, 3: 1}),
    ],
)
def test_calls_are_spread_by_weight(weights: dict[int, float], calls: int, counts: dict[int, int]) -> None:
    assert Counter(play(weights, calls)) == counts


def test_the_choice_is_smooth() -> None:
    assert play({0: 3.0, 1: 1.0}, 8) == [0, 0, 1, 0, 0, 0, 1, 0]


def test_who_had_no_room_for_long_is_not_called_more_often_afterwards() -> None:
    credit: dict[int, float] = {}
    for _ in range(1000):
        _, credit = choose_by_weight(credit, {0: 1.0})
    chosen = []
    for _ in range(10):
        index, credit = choose_by_weight(credit, {0: 1.0, 1: 1.0})
        chosen.append(index)
    assert Counter(chosen) == {0: 5, 1: 5}


def test_a_set_says_who_is_in_it() -> None:
    assert [has(A | C, index) for index in range(3)] == [True, False, True]
