"""What `run` and `submit` say of the end of a batch, and of a deadline that cannot be met."""

from __future__ import annotations

from worker.cli.console import note
from worker.clock import SystemClock
from worker.operations.tracking import Progress
from worker.policy.expected_end import Expected
from worker.reports.expected_end import describe_expected, describe_miss

_MEASURED_S = 20.0  # of a run, before its own rate is believed


def say_expected(expected: Expected, deadline_ms: int | None) -> None:
    """Says when a batch is likely to end, and warns of a deadline that comes before."""
    now_ms = SystemClock().now_ms()
    note(describe_expected(expected, now_ms=now_ms))
    if miss := describe_miss(expected.end_ms, deadline_ms, now_ms=now_ms):
        note(miss)


class DeadlineWatch:
    """Warns once, while a run goes on, that its deadline cannot be met at the run's own rate."""

    def __init__(self, deadline_ms: int | None, *, began_s: float) -> None:
        self._deadline_ms = deadline_ms
        self._began_s = began_s
        self._has_warned = False

    def look(self, progress: Progress, *, now_s: float) -> str | None:
        """The warning, the first time that it holds."""
        left_s = progress.left_s
        if self._has_warned or left_s is None or now_s - self._began_s < _MEASURED_S:
            return None
        now_ms = SystemClock().now_ms()
        found = describe_miss(now_ms + round(left_s * 1000), self._deadline_ms, now_ms=now_ms)
        self._has_warned = found is not None
        return found
