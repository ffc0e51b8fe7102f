"""The plan of a random storm: which fault, when, for how long. A pure function of its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is done to the world."""

    KILL_WORKER = "kill -9 a worker"
    STOP_WORKER = "SIGTERM a worker"
    SUSPEND_WORKER = "suspend a worker past its lease"
    FLUSH_BROKER = "FLUSHALL"
    KILL_BROKER = "kill -9 the broker"
    CUT_BROKER = "CLIENT KILL TYPE normal"
    PAUSE_BROKER = "CLIENT PAUSE"
    RESTART_DATABASE = "restart PostgreSQL"
    CUT_DATABASE = "pg_terminate_backend"
    BUSY_DATABASE = "another process writes to SQLite"
    BREAK_ENDPOINT = "the endpoint fails"
    CANCEL_JOBS = "cancel some jobs"
    RETRY_JOBS = "retry what was cancelled"


_ONLY_ON = {
    Kind.RESTART_DATABASE: "postgresql",
    Kind.CUT_DATABASE: "postgresql",
    Kind.BUSY_DATABASE: "sqlite",
}
_LASTS_S = {
    Kind.SUSPEND_WORKER: (4.5, 6.0),
    Kind.KILL_BROKER: (1.0, 5.0),
    Kind.PAUSE_BROKER: (0.5, 3.0),
    Kind.RESTART_DATABASE: (0.5, 3.0),
    Kind.BUSY_DATABASE: (1.0, 8.0),
    Kind.BREAK_ENDPOINT: (1.0, 4.0),
}
ENDPOINT_FAULTS = ("rate_500", "rate_429", "rate_reset", "rate_hang")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `draw` in [0, 1) chooses whom it meets; what lasts no time has `lasts_s` 0."""

    at_s: float
    kind: Kind
    lasts_s: float
    draw: float


def plan_storm(seed: int, *, duration_s: float, database: str) -> list[Fault]:
    """Faults in order of time, one to two seconds apart; all of them end within `duration_s`.

    Every kind that this database has comes once before any comes again.
    """
    rng = random.Random(seed)
    kinds = [kind for kind in Kind if _ONLY_ON.get(kind, database) == database]
    faults: list[Fault] = []
    left: list[Kind] = []
    at_s = 0.0
    while True:
        at_s += rng.uniform(1.0, 2.0)
        if not left:
            left = rng.sample(kinds, len(kinds))
        kind = left.pop()
        lasts_s = rng.uniform(*_LASTS_S.get(kind, (0.0, 0.0)))
        draw = rng.random()
        if at_s >= duration_s:
            return faults
        if at_s + lasts_s <= duration_s:
            faults.append(Fault(round(at_s, 3), kind, round(lasts_s, 3), draw))
