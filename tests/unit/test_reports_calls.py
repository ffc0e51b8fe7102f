"""Latencies and failed calls, as numbers and as words."""

from __future__ import annotations

import random
from collections import Counter
from statistics import quantiles

import pytest

from worker.reports.calls import call_facts, describe_failed_calls, describe_latencies, find_percentile
from worker.storage.calls import CallSums


@pytest.mark.parametrize(
    ("values", "percent", "found"),
    [
        ([], 50, None),
        ([7], 50, 7),
        ([7], 99, 7),
        ([1, 2], 50, 1),
        ([1, 2], 51, 2),
        ([0, 0, 0, 9], 75, 0),
        ([0, 0, 0, 9], 76, 9),
        (list(range(1, 101)), 95, 95),
        (list(range(1, 101)), 99, 99),
        (list(range(1, 101)), 100, 100),
    ],
)
def test_a_percentile_is_a_value_that_was_measured(
    values: list[int], percent: float, found: int | None
) -> None:
    assert find_percentile(Counter(values), percent) == found


def test_percentiles_agree_with_those_of_the_standard_library() -> None:
    values = [random.Random(1).randrange(5_000) for _ in range(10_001)]
    cuts = quantiles(values, n=100, method="inclusive")
    for percent in (50, 95, 99):
        assert abs((find_percentile(Counter(values), percent) or 0) - cuts[percent - 1]) <= 5


def test_a_run_without_calls_says_nothing_of_them() -> None:
    sums = CallSums()
    assert call_facts(sums) == {"latency_s": None, "failed_calls": {}, "retried_calls": {}}
    assert describe_latencies(sums) is None
    assert describe_failed_calls(sums) is None


def test_latencies_are_told_in_seconds() -> None:
    sums = CallSums(latencies_ms=Counter({500: 98, 1_500: 1, 90_000: 1}))
    assert describe_latencies(sums) == "p50 0.50 s · p95 0.50 s · p99 1.50 s"
    assert call_facts(sums)["latency_s"] == {"p50": 0.5, "p95": 0.5, "p99": 1.5, "max": 90.0}
    assert call_facts(CallSums(latencies_ms=Counter({0: 3})))["latency_s"]["p50"] == 0.0


@pytest.mark.parametrize(
    ("failed", "retried", "words"),
    [
        ({"timeout": 1}, {"timeout": 1}, "1 call failed: 1 × timeout; it was tried again"),
        ({"timeout": 1}, {}, "1 call failed: 1 × timeout; it was not tried again"),
        (
            {"timeout": 2, "rate_limited": 1_040},
            {"timeout": 2, "rate_limited": 1_040},
            "1,042 calls failed: 1,040 × rate_limited, 2 × timeout; all of them were tried again",
        ),
        (
            {"rejected": 2, "timeout": 1},
            {"timeout": 1},
            "3 calls failed: 2 × rejected, 1 × timeout; 1 of them was tried again",
        ),
        ({"rejected": 2}, {}, "2 calls failed: 2 × rejected; none of them was tried again"),
        (
            {"rejected": 2, "timeout": 3},
            {"timeout": 3},
            "5 calls failed: 3 × timeout, 2 × rejected; 3 of them were tried again",
        ),
    ],
)
def test_failed_calls_are_told_by_kind_and_by_what_followed(
    failed: dict[str, int], retried: dict[str, int], words: str
) -> None:
    assert describe_failed_calls(CallSums(failed=Counter(failed), retried=Counter(retried))) == words
