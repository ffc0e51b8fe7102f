"""How long a job has waited at a shut gate. Only time in which somebody tried counts. Pure."""

from __future__ import annotations

UNTRIED_CAP_MS = 900_000


def waiting_since_ms(since_ms: int, until_ms: int | None, *, now_ms: int) -> int:
    """The time from which the job counts as waiting, at its next try at `now_ms`.

    The wait up to `until_ms` counts, and so do the next fifteen minutes. Any longer gap does not: no worker ran, an
    operator had paused the endpoint, or a clock was wrong. The time moves on by that gap.
    """
    due_ms = since_ms if until_ms is None else until_ms
    untried_ms = max(0, now_ms - due_ms - UNTRIED_CAP_MS)
    return min(since_ms + untried_ms, now_ms)
