"""How a limit is shared out among workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.shares import grant, share_out

DEMANDS = st.lists(st.integers(-3, 300), max_size=12)


@pytest.mark.parametrize(
    ("limit", "demands", "turn", "shares"),
    [
        (40, [], 0, []),
        (40, [100], 0, [40]),
        (40, [10], 0, [10]),
        (40, [100, 100], 0, [20, 20]),
        (41, [100, 100], 0, [21, 20]),
        (41, [100, 100], 1, [20, 21]),
        (40, [5, 100], 0, [5, 35]),
        (40, [5, 100, 100], 0, [5, 18, 17]),
        (40, [5, 100, 100], 1, [5, 17, 18]),
        (40, [0, 100, 0], 7, [0, 40, 0]),
        (40, [3, 4, 5], 0, [3, 4, 5]),
        (0, [3, 4], 0, [0, 0]),
        (-1, [3, 4], 0, [0, 0]),
        (2, [9, 9, 9], 0, [1, 1, 0]),
        (2, [9, 9, 9], 1, [0, 1, 1]),
        (2, [9, 9, 9], 2, [1, 0, 1]),
        (1, [0, 9, -4, 9], 1, [0, 0, 0, 1]),
    ],
)
def test_a_limit_is_shared_out_by_demand(
    limit: int, demands: list[int], turn: int, shares: list[int]
) -> None:
    assert share_out(limit, demands, turn=turn) == shares


@given(st.integers(0, 500), DEMANDS, st.integers(0, 100))
def test_no_share_is_above_its_demand_and_nothing_that_is_wanted_is_left(
    limit: int, demands: list[int], turn: int
) -> None:
    shares = share_out(limit, demands, turn=turn)
    assert all(0 <= share <= max(0, demand) for share, demand in zip(shares, demands, strict=True))
    assert sum(shares) == min(limit, sum(max(0, demand) for demand in demands))


@given(st.integers(0, 500), DEMANDS, st.integers(0, 100))
def test_who_has_less_than_another_has_all_that_it_wants_but_for_one_call(
    limit: int, demands: list[int], turn: int
) -> None:
    shares = share_out(limit, demands, turn=turn)
    hungry = [share for share, demand in zip(shares, demands, strict=True) if share < demand]
    assert all(share >= max(shares) - 1 for share in hungry)


@given(st.integers(1, 500), DEMANDS, st.integers(0, 100))
def test_nobody_starves_where_there_are_as_many_calls_as_workers(
    limit: int, demands: list[int], turn: int
) -> None:
    shares = share_out(max(limit, len(demands)), demands, turn=turn)
    assert all(share >= 1 for share, demand in zip(shares, demands, strict=True) if demand > 0)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 50))
def test_where_there_are_more_workers_than_calls_each_has_its_turn(
    limit: int, workers: int, first: int
) -> None:
    turns = [share_out(limit, [5] * workers, turn=first + turn) for turn in range(workers)]
    sums = [sum(shares) for shares in zip(*turns, strict=True)]
    assert min(sums) >= 1
    assert max(sums) == min(sums)


@pytest.mark.parametrize(
    ("fair", "limit", "held_by_others", "granted"),
    [(20, 40, 20, 20), (20, 40, 40, 0), (20, 40, 30, 10), (20, 40, 0, 20), (5, 40, 50, 0)],
)
def test_a_share_grows_only_into_what_the_others_have_left(
    fair: int, limit: int, held_by_others: int, granted: int
) -> None:
    assert grant(fair, limit, held_by_others) == granted


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60), st.integers(0, 90)), max_size=60),
    st.integers(2, 6),
)
def test_the_sum_of_what_is_held_never_rises_above_the_limit(
    events: list[tuple[int, int, int]], workers: int
) -> None:
    """Demands and limits change as they like; calls in flight end later than a share becomes smaller."""
    shares, in_flight, demands = [0] * workers, [0] * workers, [0] * workers
    for number, (index, demand, limit) in enumerate(events):
        worker = index % workers
        demands[worker] = demand
        held = [max(share, calls) for share, calls in zip(shares, in_flight, strict=True)]
        before = sum(held)
        fair = share_out(limit, demands, turn=number)[worker]
        shares[worker] = grant(fair, limit, before - held[worker])
        in_flight[worker] = max(min(demand, shares[worker]), in_flight[worker] - 1)
        after = sum(max(share, calls) for share, calls in zip(shares, in_flight, strict=True))
        assert after <= max(limit, before)
