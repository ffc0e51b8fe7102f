"""When failures are an outage of the endpoint: a table of what calls came to, in the order in which they ended."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from worker.policy.outages import count_excess, is_certain, is_outage


def is_shut(ended: str, rate: float, *, jobs: int | None = None, is_known: bool = True) -> bool:
    """Whether the gate shuts at one of these calls, made one after the other: `F` failed, `A` was answered.

    Each failure is of another job, or of one of `jobs`.
    """
    excess, numbers = 0, list[int]()
    for number, one in enumerate(ended, 1):
        if one == "A":
            excess = count_excess(excess, answers=1)
            if not excess:
                numbers.clear()
            continue
        excess = count_excess(excess, failures=1)
        numbers.append(number)
        different = len(numbers) if jobs is None else min(jobs, len(numbers))
        if is_outage(
            jobs=different, excess=excess, numbers=numbers, calls=number, failure_rate=rate, is_known=is_known
        ):
            return True
    return False


@pytest.mark.parametrize(
    ("ended", "rate", "expected", "why"),
    [
        ("AAAFF", 0.0, False, "two are a few too few"),
        ("AAAFFF", 0.0, True, "three at an endpoint that never fails"),
        ("FFAFFAFF", 0.0, False, "an answer in between shows that it serves"),
        ("FFFF", 0.05, False, "four in a row come once in 160,000 calls"),
        ("FFFFF", 0.05, True, "five do not"),
        ("F" * 12, 0.3, False, "a flaky endpoint has long runs"),
        ("F" * 13, 0.3, True, "but not for ever"),
        ("F" * 10 + "A" + "F" * 10, 0.3, True, "one answer among twenty failures is no sign of health"),
        ("FFFFA" * 100, 0.5, False, "a fifth is answered: jobs get through, if late"),
        ("FFFFFFFFFA" * 20, 0.5, True, "a tenth is answered: most jobs would spend their attempts"),
        ("FFA" * 100, 0.3, False, "two of three"),
        ("AF" * 200, 0.0, False, "a lone slow endpoint that has a timeout for each answer"),
    ],
)
def test_calls_in_a_row(ended: str, rate: float, expected: bool, why: str) -> None:
    assert is_shut(ended, rate) is expected, why


def test_one_or_two_jobs_that_fail_again_and_again_are_no_outage() -> None:
    assert not is_shut("F" * 50, 0.0, jobs=2)
    assert is_shut("F" * 50, 0.0, jobs=3)


@pytest.mark.parametrize(
    ("failed", "calls", "rate", "expected", "why"),
    [
        (range(1, 501, 10), 500, 0.0, False, "one of ten replicas died with its calls"),
        (range(1, 201), 500, 0.0, True, "the calls in flight fail, one after the other"),
        ([1, 2, 3, 6, 7], 10, 0.05, False, "five of the ten in flight, and none has been answered yet"),
        (range(1, 9), 12, 0.05, True, "eight of the first eight"),
        (range(1, 9), 250, 0.01, False, "eight of 250 that began"),
    ],
)
def test_calls_side_by_side(failed: range, calls: int, rate: float, expected: bool, why: str) -> None:
    numbers = list(failed)
    found = is_outage(jobs=len(numbers), excess=len(numbers), numbers=numbers, calls=calls, failure_rate=rate)
    assert found is expected, why


def test_the_first_wave_of_calls_to_an_unknown_endpoint_is_not_judged_by_its_quick_failures() -> None:
    known = {"jobs": 3, "excess": 3, "failure_rate": 0.01, "calls": 9}
    assert not is_outage(numbers=[2, 5, 7], is_known=False, **known)  # type: ignore[arg-type]
    assert is_outage(numbers=[1, 2, 3], is_known=False, **{**known, "calls": 3})  # type: ignore[arg-type]


def test_the_excess_never_falls_below_nothing() -> None:
    assert count_excess(0, answers=1000) == 0
    assert count_excess(9, answers=2) == 1
    assert count_excess(3, answers=1, failures=2) == 2, "the answers came first"


@pytest.mark.parametrize(
    ("numbers", "in_flight", "recent_rate", "expected", "why"),
    [
        ([1, 2, 3], 1, 0.01, True, "one call after the other: more would only be noticed late"),
        ([1, 2, 3], 4, 0.01, False, "the fourth call has not ended yet"),
        ([1, 2, 3, 4], 4, 0.01, True, "all four have failed"),
        (range(1, 8), 16, 0.01, False, "seven in a row come once in 4,600 at 30 %"),
        (range(1, 9), 16, 0.01, True, "eight in a row do so once in 15,000"),
        (range(1, 9), 500, 0.01, True, "and hundreds in flight ask for no more"),
        (range(1, 40, 3), 16, 0.01, False, "a third of the calls fails, and answers take longer"),
        (range(1, 13), 1, 0.3, False, "it failed in 30 % of its latest calls"),
        (range(1, 14), 1, 0.3, True, "thirteen in a row are too many for that"),
        ([*range(1, 321, 20), *range(400, 416)], 16, 0.02, True, "the latest half of them are all calls"),
    ],
)
def test_what_a_healthy_endpoint_that_becomes_flaky_does_not_do(
    numbers: Sequence[int], in_flight: int, recent_rate: float, expected: bool, why: str
) -> None:
    found = is_certain(
        excess=len(numbers), numbers=list(numbers), recent_rate=recent_rate, in_flight=in_flight
    )
    assert found is expected, why
