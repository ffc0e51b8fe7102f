"""Whether anybody works on what was queued just now: said by the commands that queue and leave."""

from __future__ import annotations

from worker.clock import SystemClock
from worker.settings import Settings
from worker.storage.doctor import Look, fetch_live_endpoints
from worker.storage.engine import Ledger
from worker.storage.pauses import fetch_pause


def why_nobody_works(ledger: Ledger, settings: Settings, endpoint: str) -> str | None:
    """A sentence where jobs of `endpoint` are not called just now, with what to do; None where somebody works.

    It is for people: a worker that is silent for longer than its lease, by two clocks, counts as dead.
    """
    look = Look(SystemClock().now_ms(), published_before_ms=0)
    with ledger.read() as connection:
        pause = fetch_pause(connection, endpoint)
        is_served = endpoint in fetch_live_endpoints(connection, look)
    if pause is not None:
        reason = pause.reason or "no reason given"
        return f"{endpoint} is paused ({reason}): `antrean resume` goes on"
    if is_served:
        return None
    which = "" if endpoint == settings.endpoint else ", with the settings of that endpoint,"
    return f"no worker lives for {endpoint}: `antrean worker`{which} starts one"
