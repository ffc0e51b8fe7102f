"""A process that asks the ledger and the broker about the stack, and prints a JSON line a second.

It is a process of its own because a database that hangs must not block the supervisor, and the supervisor, which
forks, must have no threads.

    {"workers": [[4711, 1760000000000]], "away": {}, "trouble": null}
    {"workers": [], "away": {"database": "the database does not answer: …"}, "trouble": null}
    {"workers": […], …, "counts": {"queued": 12, "running": 3}, "jobs_per_minute": 41.0}
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import redis

from schemas.job import JobState
from worker.broker.client import broker_address, open_client
from worker.clock import SystemClock
from worker.errors import AntreanError
from worker.logs.setup import configure_logs
from worker.operations.gates import GateWatch, describe_trouble
from worker.reports.summary import format_count
from worker.settings import Settings, load_settings
from worker.storage.batches import count_states
from worker.storage.engine import Transaction, open_ledger
from worker.storage.reading import Trouble, fetch_trouble
from worker.storage.workers import fetch_workers

_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """The facts of one line. `workers`: those of this machine, as (pid, started_at_ms). `counts`: once an interval."""

    workers: frozenset[tuple[int, int]] = frozenset()
    away: Mapping[str, str] = field(default_factory=dict)  # "database" or "broker" to a sentence about it
    trouble: str | None = None
    counts: Mapping[str, int] | None = None
    jobs_per_minute: float | None = None


def parse_figures(line: str) -> Figures | None:
    """The figures of a line; None if the line is something else, such as a warning or a traceback."""
    try:
        facts = json.loads(line)
        return Figures(
            workers=frozenset((int(pid), int(started)) for pid, started in facts["workers"]),
            away=dict(facts["away"]),
            trouble=facts["trouble"],
            counts=facts.get("counts"),
            jobs_per_minute=facts.get("jobs_per_minute"),
        )
    except (ValueError, TypeError, KeyError):
        return None


def describe_health(figures: Figures, *, ready: int, wanted: int) -> str:
    """`2 workers · 32 in flight · 1,204 queued · 12 failed · 41 jobs/min`, then what the jobs wait for, if they do."""
    counts = figures.counts or {}
    shown = [
        format_count(ready, "worker") if ready == wanted else f"{ready} of {format_count(wanted, 'worker')}",
        f"{format_count(counts.get(JobState.RUNNING, 0))} in flight",
        f"{format_count(counts.get(JobState.QUEUED, 0))} queued",
    ]
    if counts.get(JobState.WAITING):
        shown.append(f"{format_count(counts[JobState.WAITING])} waiting")
    shown.append(f"{format_count(counts.get(JobState.FAILED, 0))} failed")
    if figures.jobs_per_minute is not None:
        shown.append(f"{format_count(round(figures.jobs_per_minute))} jobs/min")
    if figures.trouble:
        shown.append(f"waiting for {figures.trouble}")
    return " · ".join(shown)


class Observer:
    """Asks the ledger and the broker. Counts jobs, which walks an index, once in `interval_s`; never if that is 0."""

    def __init__(self, settings: Settings, interval_s: float) -> None:
        self._interval_s = interval_s
        self._endpoint = settings.endpoint
        self._ledger = open_ledger(settings, pool_size=1)
        self._broker = open_client(broker_address(settings))
        self._gate = GateWatch(settings, self._broker)
        self._counted_at_s = time.monotonic()
        self._ended: int | None = None

    def look(self) -> dict[str, Any]:
        """The facts of one line, as they are printed."""
        away: dict[str, str] = {}
        trouble, gate = Trouble(None, ()), None
        facts: dict[str, Any] = {"workers": [], "away": away, "trouble": None}
        try:
            with self._ledger.read() as connection:
                here = socket.gethostname()
                facts["workers"] = [
                    (one.pid, one.started_at_ms) for one in fetch_workers(connection) if one.hostname == here
                ]
                trouble = fetch_trouble(connection, self._endpoint)
                facts |= self._count(connection)
        except AntreanError as exc:
            away["database"] = str(exc)
        try:
            self._broker.ping()
        except redis.RedisError as exc:
            away["broker"] = f"the broker does not answer: {' '.join(str(exc).split())[:200]}"
        else:
            gate = self._gate.fetch_cached()
        facts["trouble"] = describe_trouble(trouble, gate, now_ms=SystemClock().now_ms())
        return facts

    def _count(self, connection: Transaction) -> dict[str, Any]:
        """Jobs by state, and how many ended per minute, if a count is due. Retries and pruning make the rate lower."""
        now_s = time.monotonic()
        span_s, before = now_s - self._counted_at_s, self._ended
        is_due = 0 < self._interval_s <= span_s
        if not is_due and (before is not None or self._interval_s == 0):
            return {}
        counts = count_states(connection)
        self._ended = sum(count for state, count in counts.items() if state.is_final)
        self._counted_at_s = now_s
        if not is_due:  # the first count: there is nothing yet to compare with
            return {}
        rate = None if before is None else max(0.0, (self._ended - before) * 60 / span_s)
        return {"counts": {state.value: count for state, count in counts.items()}, "jobs_per_minute": rate}


def main() -> None:
    """Argument: seconds between two counts. Ends by a signal, or when its output has no reader any more."""
    configure_logs()
    settings = load_settings()
    configure_logs(settings.log_level)
    observer = Observer(settings, float(sys.argv[1]))
    try:
        while True:
            sys.stdout.write(json.dumps(observer.look()) + "\n")
            sys.stdout.flush()
            time.sleep(_LOOK_S)
    except (BrokenPipeError, KeyboardInterrupt):
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
