"""Whether a worker serves an endpoint, and which other endpoints have jobs and no worker. Changes nothing.

It is for people: a worker that is silent for longer than its lease, by two clocks, counts as dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.clock import SystemClock
from worker.settings import Settings
from worker.storage.doctor import fetch_live_endpoints
from worker.storage.engine import Ledger
from worker.storage.other_endpoints import MOST_COUNTED, fetch_left_elsewhere
from worker.storage.pauses import fetch_pause


@dataclass(frozen=True, slots=True)
class Left:
    """Jobs without a worker: their number; where it `is_cut`, there are at least so many."""

    count: int
    is_cut: bool


def why_nobody_works(ledger: Ledger, settings: Settings, endpoint: str) -> str | None:
    """Why jobs of `endpoint` are not called now, with what to do; None where a worker serves it and no pause holds."""
    with ledger.read() as connection:
        pause = fetch_pause(connection, endpoint)
        is_served = endpoint in fetch_live_endpoints(connection, now_ms=SystemClock().now_ms())
    if pause is not None:
        reason = pause.reason or "no reason given"
        return f"{endpoint} is paused ({reason}): `antrean resume` goes on"
    if is_served:
        return None
    which = "" if endpoint == settings.endpoint else ", with the settings of that endpoint,"
    return f"no worker lives for {endpoint}: `antrean worker`{which} starts one"


def find_left_jobs(ledger: Ledger, settings: Settings) -> Mapping[str, Left]:
    """Other endpoints than that of the settings, each with its open jobs, where no worker lives for them."""
    with ledger.read() as connection:
        left = fetch_left_elsewhere(connection, settings.endpoint, now_ms=SystemClock().now_ms())
    return {endpoint: Left(count, is_cut=count >= MOST_COUNTED) for endpoint, count in left.items()}
