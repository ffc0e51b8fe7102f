"""Moments as people read them."""

from __future__ import annotations

import re

from worker.clock import describe_moment, describe_until

NOW = 1_760_000_000_000


def test_a_time_to_come_is_told_by_the_clock_and_by_what_is_left() -> None:
    assert re.fullmatch(r"until \d\d:\d\d:\d\d, in 45 s", describe_until(NOW + 44_001, NOW))
    assert re.fullmatch(
        r"at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, in 172,800 s", describe_moment(NOW + 172_800_000, NOW)
    )


def test_a_time_that_is_over_is_not_called_now() -> None:
    for over_ms in (NOW, NOW - 60_000):
        assert re.fullmatch(r"until \d\d:\d\d:\d\d, which is over", describe_until(over_ms, NOW))
    assert describe_moment(NOW - 1, NOW) == "now"
