"""How long a job has waited at a shut gate. Only time in which it was tried counts. Pure."""

from __future__ import annotations

UNTRIED_CAP_MS = 900_000


def waiting_since_ms(since_ms: int, until_ms: int | None, *, now_ms: int) -> int:
    """The time (ms) since which the job counts as waiting, when it is tried next at `now_ms`.

    The wait until `until_ms` counts, and so do the 15 minutes after it. A longer gap does not count, as no worker ran,
    an operator had paused the endpoint, or a clock was wrong: the result is later than `since_ms` by that gap.
    """
    due_ms = since_ms if until_ms is None else until_ms
    untried_ms = max(0, now_ms - due_ms - UNTRIED_CAP_MS)
    return min(since_ms + untried_ms, now_ms)
