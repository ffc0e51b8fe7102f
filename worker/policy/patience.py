"""How long a job has waited at a shut gate: the time in which somebody tried. Pure."""

from __future__ import annotations

UNTRIED_CAP_MS = 900_000


def waiting_since_ms(since_ms: int, until_ms: int | None, *, now_ms: int) -> int:
    """Since when the job counts as waiting, as of its next try at `now_ms`.

    The wait up to `until_ms` was asked for and counts, and so do fifteen minutes beyond it. What is longer is a night
    in which no worker ran, a pause, or a clock that was wrong, and moves the beginning on.
    """
    due_ms = since_ms if until_ms is None else until_ms
    untried_ms = max(0, now_ms - due_ms - UNTRIED_CAP_MS)
    return min(since_ms + untried_ms, now_ms)
