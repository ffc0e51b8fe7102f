"""A deadline is a duration from now, or a time with its zone; never one that is over."""

from __future__ import annotations

import pytest

from worker.errors import InputError
from worker.operations.deadlines import parse_deadline

NOW_MS = 1_782_900_000_000  # 2026-07-01T10:00:00Z
HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("text", "after_ms"),
    [
        ("6h", 6 * HOUR_MS),
        ("45m", 45 * 60_000),
        (" 90s ", 90_000),
        ("1d12h", 36 * HOUR_MS),
        ("1h30m10s", 90 * 60_000 + 10_000),
        ("2026-07-01T18:00Z", 8 * HOUR_MS),
        ("2026-07-01T20:00+02:00", 8 * HOUR_MS),
        ("2026-07-01 13:30:00.250-00:30", 4 * HOUR_MS + 250),
    ],
)
def test_a_deadline_is_a_duration_or_a_time_with_its_zone(text: str, after_ms: int) -> None:
    assert parse_deadline(text, now_ms=NOW_MS) == NOW_MS + after_ms


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("soon", "neither a duration"),
        ("", "neither a duration"),
        ("6", "neither a duration"),
        ("-6h", "neither a duration"),
        ("6h later", "neither a duration"),
        ("2026-07-01T18:00", "names no time zone"),
        ("2026-07-02", "is a day"),
        ("0s", "is over already"),
        ("2026-07-01T10:00Z", "is over already"),
        ("2020-01-01T00:00+02:00", "is over already"),
        ("999999999d", "too far away"),
    ],
)
def test_another_deadline_is_refused_with_a_sentence(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_deadline(text, now_ms=NOW_MS)
