"""The likely end of a batch follows from the rate of the last answers and from whose turn comes first."""

from __future__ import annotations

import time

import pytest

from worker.cli.expected import DeadlineWatch
from worker.operations.tracking import Progress
from worker.policy.expected_end import Expected, Flow, expect_end
from worker.reports.expected_end import describe_expected, describe_miss

NOW_MS = 1_782_900_000_000


@pytest.mark.parametrize(
    ("flow", "own", "others", "in_ms"),
    [
        (Flow(100, NOW_MS - 10_000), 50, [], 5_000),
        (Flow(100, NOW_MS - 10_000), 50, [20, 50], 12_000),
        (Flow(100, NOW_MS - 10_000), 50, [1_000_000], 10_000),  # a large batch takes turns with a small one
        (Flow(100, NOW_MS - 90_000, NOW_MS - 80_000), 50, [], 5_000),  # nobody worked since
        (Flow(5, NOW_MS), 5, [], 1_000),  # of one moment: a second at least
        (Flow(100, NOW_MS - 10_000), 0, [7], 0),
    ],
)
def test_the_end_is_as_far_as_the_jobs_before_it_take(
    flow: Flow, own: int, others: list[int], in_ms: int
) -> None:
    found = expect_end(flow, own=own, others=[(jobs, 1.0) for jobs in others], now_ms=NOW_MS)
    assert found is not None and found.end_ms == NOW_MS + in_ms


@pytest.mark.parametrize(
    ("weight", "other", "in_ms"),
    [(1.0, 1.0, 10_000), (2.0, 1.0, 7_500), (1.0, 2.0, 15_000), (0.5, 1.0, 15_000), (1.0, 99.0, 85_000)],
)
def test_a_batch_of_more_weight_ends_sooner(weight: float, other: float, in_ms: int) -> None:
    flow = Flow(100, NOW_MS - 10_000)
    found = expect_end(flow, own=50, others=[(800, other)], now_ms=NOW_MS, weight=weight)
    assert found is not None and found.end_ms == NOW_MS + in_ms


@pytest.mark.parametrize("flow", [Flow(0, None), Flow(4, NOW_MS - 1000)])
def test_few_answers_tell_no_end(flow: Flow) -> None:
    assert expect_end(flow, own=5, others=[], now_ms=NOW_MS) is None


def test_a_deadline_is_missed_when_it_comes_before_the_end() -> None:
    expected = Expected(NOW_MS, 1.0)
    assert expected.misses(NOW_MS - 1)
    assert not expected.misses(NOW_MS) and not expected.misses(None)


def test_the_end_and_a_deadline_that_comes_before_it_are_said_in_words() -> None:
    said = describe_expected(Expected(NOW_MS + 90_000, 12.345), now_ms=NOW_MS)
    assert said.startswith("likely to end at ")
    assert said.endswith(" (in 1 min 30 s), at the 12.3 jobs/s of the last minutes")
    miss = describe_miss(NOW_MS + 90_000, NOW_MS + 30_000, now_ms=NOW_MS)
    assert miss is not None and "1 min 00 s too early" in miss
    assert describe_miss(NOW_MS, NOW_MS, now_ms=NOW_MS) is None
    assert describe_miss(NOW_MS, None, now_ms=NOW_MS) is None


def test_a_run_warns_once_of_its_deadline_and_not_before_its_rate_is_known() -> None:
    slow = Progress(total=1000, succeeded=10, jobs_per_s=1.0)
    watch = DeadlineWatch(time.time_ns() // 1_000_000 + 60_000, began_s=0.0)
    assert watch.look(slow, now_s=19.0) is None
    assert watch.look(Progress(total=20, succeeded=10, jobs_per_s=1.0), now_s=21.0) is None
    assert watch.look(slow, now_s=21.0) is not None
    assert watch.look(slow, now_s=22.0) is None
    assert DeadlineWatch(None, began_s=0.0).look(slow, now_s=21.0) is None
