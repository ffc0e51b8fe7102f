"""The limits of an endpoint: what holds, what is set, and how it changed.

Limits that are set are of all workers of the endpoint together. They hold for running workers within a second, and for
those that start later. Calls in flight are never cut. The limit that workers found by themselves is only shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.broker.client import broker_address, open_client
from worker.clock import SystemClock, iso_ms
from worker.policy.concurrency import FIRST
from worker.settings import EndpointSettings, Settings
from worker.storage import limits
from worker.storage.engine import Ledger, Transaction
from worker.storage.limits import LimitChange, LimitKind, LimitSource, StoredLimit
from worker.throttle.limits import StoreAway, Use
from worker.throttle.redis_limits import RedisLimitStore

_TOLD_FOR_MS = 24 * 3_600_000  # workers say it again once an hour
_NAMES = {
    LimitKind.IN_FLIGHT: "calls in flight",
    LimitKind.REQUESTS: "requests a minute",
    LimitKind.TOKENS: "tokens a minute",
}


@dataclass(frozen=True, slots=True)
class TableLimit:
    """A limit that the table of an endpoint names. It holds while no command has set another."""

    kind: LimitKind
    value: int


@dataclass(frozen=True, slots=True)
class HeldLimits:
    """The limits of an endpoint that hold now: those of the ledger, and those of its table."""

    endpoint: EndpointSettings
    stored: Sequence[StoredLimit] = ()
    table: Sequence[TableLimit] = ()

    @property
    def described(self) -> list[str]:
        """`40 calls in flight (found)`, one by one."""
        return [*map(describe_limit, self.stored), *map(describe_table_limit, self.table)]

    @property
    def described_rates(self) -> list[str]:
        """The same of the limits of a minute."""
        stored = [one for one in self.stored if one.kind is not LimitKind.IN_FLIGHT]
        return [*map(describe_limit, stored), *map(describe_table_limit, self.table)]

    @property
    def facts(self) -> list[dict[str, Any]]:
        """The same for programs."""
        return [
            *map(limit_facts, self.stored),
            *(table_limit_facts(self.endpoint.identity, one) for one in self.table),
        ]


@dataclass(frozen=True, slots=True)
class LimitsView:
    """The limits that hold now, and their use. `use` None: no worker shares them, or the broker does not answer."""

    held: HeldLimits
    use: Use | None


def fetch_limits_view(ledger: Ledger, settings: Settings, endpoint: EndpointSettings) -> LimitsView:
    """The limits of one of these settings' endpoints. Raises DatabaseAway."""
    with ledger.read() as connection:
        held = fetch_held_limits(connection, endpoint)
    return LimitsView(held, _fetch_use(settings, endpoint))


def fetch_held_limits(connection: Transaction, endpoint: EndpointSettings) -> HeldLimits:
    """The limits that hold at this endpoint now. Raises DatabaseAway."""
    return hold_limits(limits.fetch_limits(connection, endpoint.identity), endpoint)


def hold_limits(
    stored: Sequence[StoredLimit], endpoint: EndpointSettings, *, now_ms: int | None = None
) -> HeldLimits:
    """Those that hold: not what was cleared, what was found only where it is sought, of each key what it was told
    within a day, and the table's where none is set. See `_find_in_use` for what was found by key."""
    at_ms = SystemClock().now_ms() if now_ms is None else now_ms
    found = _find_in_use(stored) if endpoint.is_adaptive else []

    def holds(one: StoredLimit) -> bool:
        if one.source is LimitSource.HEADER:
            return one.updated_ms > at_ms - _TOLD_FOR_MS
        return one in found if one.source is LimitSource.FOUND else not one.key_id

    held = [one for one in stored if one.value is not None and holds(one)]
    are_set = {one.kind for one in held if one.source is LimitSource.SET}
    told = {LimitKind.REQUESTS: endpoint.requests_per_minute, LimitKind.TOKENS: endpoint.tokens_per_minute}
    table = [
        TableLimit(kind, value) for kind, value in told.items() if value is not None and kind not in are_set
    ]
    return HeldLimits(endpoint, held, table)


def _find_in_use(stored: Sequence[StoredLimit]) -> list[StoredLimit]:
    """The found limits that workers used last: that of the endpoint while it had one key, or else those of its keys.

    A key whose limit was written a day before the newest one is not in use any more: workers write it every minute.
    """
    found = [one for one in stored if one.source is LimitSource.FOUND]
    newest = max(found, key=lambda one: one.updated_ms, default=None)
    if newest is None:
        return []
    oldest_ms = newest.updated_ms - _TOLD_FOR_MS
    return [one for one in found if bool(one.key_id) == bool(newest.key_id) and one.updated_ms >= oldest_ms]


def set_limits(ledger: Ledger, endpoint: str, values: Mapping[LimitKind, int | None]) -> list[LimitChange]:
    """Sets limits; None clears one. Returns what changed. Raises DatabaseAway."""

    def work(connection: Transaction) -> list[LimitChange]:
        return limits.set_limits(connection, endpoint, values, now_ms=SystemClock().now_ms())

    return ledger.run(work)


def fetch_history(ledger: Ledger, endpoint: str, *, at_most: int) -> list[LimitChange]:
    """The changes of the endpoint's limits, newest first, at most `at_most`. Raises DatabaseAway."""
    with ledger.read() as connection:
        return limits.fetch_changes(connection, endpoint, at_most=at_most)


def describe_limit(one: StoredLimit) -> str:
    """`40 calls in flight (found)`, `60 requests a minute (header, key 0a1b2c3d4e5f)`.

    `16 calls in flight (to begin with)`: nothing was found yet.
    """
    key = f", key {one.key_id}" if one.key_id else ""
    is_first = one.source is LimitSource.FOUND and one.reason == FIRST
    return f"{one.value:,} {_NAMES[one.kind]} ({'to begin with' if is_first else one.source.value}{key})"


def describe_table_limit(one: TableLimit) -> str:
    """`600 requests a minute (table)`."""
    return f"{one.value:,} {_NAMES[one.kind]} (table)"


def describe_change(one: LimitChange) -> str:
    """`calls in flight: 40 to 30, refused`."""
    old, new = ("none" if value is None else f"{value:,}" for value in (one.old, one.new))
    by_hand = "cleared" if one.new is None else "set"
    who = by_hand if one.source is LimitSource.SET else one.reason or one.source.value
    key = f" of key {one.key_id}" if one.key_id else ""
    return f"{_NAMES[one.kind]}{key}: {old} to {new}, {who}"


def limit_facts(one: StoredLimit) -> dict[str, Any]:
    """The same for programs."""
    return {
        "endpoint": one.endpoint,
        "key_id": one.key_id or None,
        "kind": one.kind.value,
        "value": one.value,
        "source": one.source.value,
        "since": iso_ms(one.since_ms),
        "reason": one.reason,
    }


def table_limit_facts(endpoint: str, one: TableLimit) -> dict[str, Any]:
    """The same for programs."""
    return {
        "endpoint": endpoint,
        "kind": one.kind.value,
        "value": one.value,
        "source": "table",
        "since": None,
        "reason": None,
    }


def change_facts(one: LimitChange) -> dict[str, Any]:
    """The same for programs."""
    return {
        "endpoint": one.endpoint,
        "key_id": one.key_id or None,
        "kind": one.kind.value,
        "source": one.source.value,
        "at": iso_ms(one.at_ms),
        "old": one.old,
        "new": one.new,
        "reason": one.reason,
        "worker_id": one.worker_id,
    }


def _fetch_use(settings: Settings, endpoint: EndpointSettings) -> Use | None:
    try:
        return RedisLimitStore(open_client(broker_address(settings)), endpoint.identity).fetch_use()
    except StoreAway:  # an embedded broker is away while no command uses it
        return None
