"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.reports.summary import format_bytes, format_count, format_seconds


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
