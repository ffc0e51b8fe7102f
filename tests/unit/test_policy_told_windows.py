"""How many calls may begin under a limit that answers tell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.rates import Allowance
from worker.policy.told_windows import (
    Refill,
    Window,
    count_left,
    grant_calls,
    note_refill,
    note_window,
    pass_reset,
)

NOW_MS = 1_000_000


def told(left: int, *, reset_ms: int = 20_000, call_ms: int = 200, **more: int) -> Window:
    """As of a call that is answered now."""
    ends_ms = NOW_MS + reset_ms
    window = Window(left, 300, early_ms=ends_ms - call_ms, late_ms=ends_ms, span_ms=reset_ms, at_ms=NOW_MS)
    return replace(window, **more)


def left(window: Window | None, *, uncounted: int = 0, now_ms: int = NOW_MS) -> int | None:
    found = count_left(((window, uncounted),), now_ms=now_ms)
    return None if found is None else found[0]


# (what answers tell one after the other, calls in flight) -> how many more may begin
ANSWERS: dict[str, tuple[list[Window], int, int | None]] = {
    "none is in flight": ([told(290)], 0, 290),
    "those in flight may not be counted": ([told(290)], 8, 282),
    "nothing remains": ([told(0)], 0, 0),
    "more remains than there can be": ([told(500)], 8, 292),
    "more are in flight than remain": ([told(10)], 20, -10),
    "of one window the least counts, in any order": ([told(290), told(284), told(287)], 6, 278),
    "the next window counts, and not the one before": ([told(3), told(299, reset_ms=60_000)], 4, 295),
    "a late answer of the window before is old news": (
        [told(299, reset_ms=60_000), told(0, reset_ms=1_000, call_ms=9_000)],
        4,
        295,
    ),
    "a slow call of the same window": ([told(50), told(40, reset_ms=25_000, call_ms=9_000)], 0, 40),
    "a reset that is over tells nothing": ([told(0, reset_ms=0)], 0, None),
    "the limit of another size": ([told(50), told(7, limit=10)], 0, 7),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_as_many_may_begin_as_the_least_that_was_told_less_those_in_flight(name: str) -> None:
    answers, in_flight, expected = ANSWERS[name]
    window = None
    for one in answers:
        window = note_window(window, one, now_ms=NOW_MS)
    assert left(window, uncounted=in_flight) == expected


def test_the_more_answers_the_better_the_end_of_a_window_is_known() -> None:
    window = note_window(None, told(90, reset_ms=25_000, call_ms=9_000), now_ms=NOW_MS)
    window = note_window(window, told(80, reset_ms=20_000), now_ms=NOW_MS)
    assert window is not None and (window.early_ms, window.late_ms) == (NOW_MS + 19_800, NOW_MS + 20_000)


def test_after_a_reset_the_limit_is_there_again_until_an_answer_tells() -> None:
    window, later_ms = note_window(None, told(0), now_ms=NOW_MS), NOW_MS + 20_000
    assert pass_reset(window, now_ms=later_ms - 1) is window
    again = pass_reset(window, now_ms=later_ms)
    assert left(again, uncounted=8, now_ms=later_ms) == 292
    stale = told(0, early_ms=later_ms - 100, late_ms=later_ms + 100)
    assert note_window(again, stale, now_ms=later_ms + 50) is again, "it began in the window before"
    new = told(299, early_ms=later_ms + 59_900, late_ms=later_ms + 60_100)
    assert note_window(again, new, now_ms=later_ms + 100) is new
    assert pass_reset(again, now_ms=later_ms + 20_000) is None, "nobody tells any more"
    assert pass_reset(window, now_ms=later_ms + 20_000) is None, "that is long ago"


def test_after_a_reset_nothing_is_assumed_of_a_limit_that_is_not_known() -> None:
    window = note_window(None, told(0, limit=0), now_ms=NOW_MS)
    assert pass_reset(window, now_ms=NOW_MS + 20_000) is None


def test_a_bucket_that_is_full_does_not_overflow() -> None:
    window, later_ms = note_window(None, told(290, each_us=200_000), now_ms=NOW_MS), NOW_MS + 20_000
    assert left(window, uncounted=4, now_ms=later_ms - 1) == 296
    assert left(pass_reset(window, now_ms=later_ms), uncounted=4, now_ms=later_ms + 9_000) == 296


def test_a_limit_that_comes_back_evenly_allows_more_all_the_time() -> None:
    window = note_window(None, told(0, each_us=200_000), now_ms=NOW_MS)
    assert [left(window, now_ms=NOW_MS + after_ms) for after_ms in (0, 200, 230, 10_000)] == [0, 0, 1, 45]


def test_the_limit_that_leaves_the_fewest_counts_and_none_is_no_bound() -> None:
    few, many = told(5), told(500, reset_ms=5_000)
    assert count_left(((many, 2), (few, 2)), now_ms=NOW_MS) == (3, 20_000)
    assert count_left(((None, 2), (None, 2)), now_ms=NOW_MS) is None


@pytest.mark.parametrize(
    ("there", "wanted", "workers", "may_begin", "granted"),
    [
        (5000, 10, 1, 64, None),  # plenty: nobody asks for permits
        (256, 10, 1, 64, None),
        (255, 10, 1, 64, 10),
        (20, 100, 1, 64, 20),
        (20, 100, 2, 64, 10),
        (1, 100, 2, 64, 1),
        (0, 100, 2, 64, 0),
        (-7, 100, 2, 64, 0),
        (20, 0, 2, 64, 0),
    ],
)
def test_while_few_are_left_a_worker_asks_and_gets_at_most_its_part(
    there: int, wanted: int, workers: int, may_begin: int, granted: int | None
) -> None:
    assert grant_calls(there, wanted, workers=workers, may_begin=may_begin) == granted


def test_a_bucket_is_told_from_a_window_by_its_reset() -> None:
    bucket: Refill | None = None
    for used in (1, 2, 3, 5, 8, 16):
        bucket = note_refill(bucket, Allowance(300, 300 - used, used * 0.2))
    assert bucket is not None and bucket.is_even and round(bucket.span_ms) == 60_000
    for rate in (1, 5, 60):  # calls a second through a window of a minute, three times
        window: Refill | None = None
        for tenth in range(1, 1800):
            used = min(300, rate * (tenth % 600) // 10)
            window = note_refill(window, Allowance(300, 300 - used, 60 - (tenth % 600) / 10))
            assert window is None or not window.is_even, (rate, tenth)


@pytest.mark.parametrize(
    "said",
    [
        Allowance(),
        Allowance(300, None, 1.0),
        Allowance(300, 300, 1.0),
        Allowance(300, 299, 0.0),
        Allowance(None, 3, 1.0),
        Allowance(10, 30, 1.0),
    ],
)
def test_an_answer_that_does_not_say_all_of_it_tells_nothing_of_the_refill(said: Allowance) -> None:
    assert note_refill(None, said) is None
