"""The likely end of a batch in words. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from worker.policy.expected_end import Expected
from worker.reports.summary import format_seconds


def describe_expected(expected: Expected, *, now_ms: int) -> str:
    """`likely to end at 14:03 (in 25 min 10 s), at the 12.3 jobs/s of the last minutes`, in local time."""
    in_s = max(0, expected.end_ms - now_ms) / 1000
    return (
        f"likely to end at {_local(expected.end_ms, now_ms)} (in {format_seconds(in_s)}), at the "
        f"{expected.jobs_per_s:,.3g} jobs/s of the last minutes"
    )


def describe_miss(end_ms: int, deadline_ms: int | None, *, now_ms: int) -> str | None:
    """The warning that a deadline cannot be met; None where it is likely to be."""
    if deadline_ms is None or end_ms <= deadline_ms:
        return None
    late_s = (end_ms - deadline_ms) / 1000
    return (
        f"warning: the deadline, {_local(deadline_ms, now_ms)}, is likely to come {format_seconds(late_s)} too early: "
        "what is not done by then will be expired"
    )


def _local(at_ms: int, now_ms: int) -> str:
    at = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone()
    is_today = at.date() == datetime.fromtimestamp(now_ms / 1000, UTC).astimezone().date()
    return f"{at:%H:%M}" if is_today else f"{at:%Y-%m-%d %H:%M}"
