"""Limits of an endpoint: those that an operator set and those that workers found, and how they changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, bindparam, delete, select

from worker.ids import new_id
from worker.storage.cleaning import clean_text
from worker.storage.tables import limit_changes, limits, upsert

KEPT_CHANGES = 5000  # of an endpoint


class LimitKind(StrEnum):
    """What is limited."""

    IN_FLIGHT = "in_flight"
    REQUESTS = "requests_per_min"
    TOKENS = "tokens_per_min"


class LimitSource(StrEnum):
    """Where a limit comes from."""

    SET = "set"
    FOUND = "found"
    HEADER = "header"


@dataclass(frozen=True, slots=True)
class StoredLimit:
    """A limit. `value` None: it was cleared. `facts` is JSON. `since_ms`: when it got its value."""

    endpoint: str
    key_id: str
    kind: LimitKind
    source: LimitSource
    value: int | None
    facts: str | None
    reason: str | None
    since_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True)
class LimitChange:
    """A change of a limit. `worker_id` None: a command made it."""

    endpoint: str
    key_id: str
    kind: LimitKind
    source: LimitSource
    at_ms: int
    old: int | None
    new: int | None
    reason: str | None
    worker_id: str | None


# Others are of a newer version, and are left out.
_KINDS, _SOURCES = frozenset(LimitKind), frozenset(LimitSource)
_LIMIT_COLUMNS = (
    limits.c.endpoint,
    limits.c.key_id,
    limits.c.kind,
    limits.c.source,
    limits.c.value,
    limits.c.facts,
    limits.c.reason,
    limits.c.since_ms,
    limits.c.updated_ms,
)
_ALL = select(*_LIMIT_COLUMNS).order_by(limits.c.endpoint, limits.c.key_id, limits.c.kind, limits.c.source)
# Built once, as each worker executes it twice a second.
_OF_ENDPOINT = _ALL.where(limits.c.endpoint == bindparam("of_endpoint"))
_CHANGES = select(
    limit_changes.c.endpoint,
    limit_changes.c.key_id,
    limit_changes.c.kind,
    limit_changes.c.source,
    limit_changes.c.at_ms,
    limit_changes.c.old,
    limit_changes.c.new,
    limit_changes.c.reason,
    limit_changes.c.worker_id,
).order_by(limit_changes.c.id.desc())


def fetch_limits(
    connection: Connection, endpoint: str | None = None, *, key_id: str | None = None
) -> list[StoredLimit]:
    """The limits of an endpoint, or of all; also those that were cleared."""
    found = (
        connection.execute(_ALL)
        if endpoint is None
        else connection.execute(_OF_ENDPOINT, {"of_endpoint": endpoint})
    )
    read = [
        StoredLimit(row[0], row[1], LimitKind(row[2]), LimitSource(row[3]), *row[4:])
        for row in found.all()
        if row[2] in _KINDS and row[3] in _SOURCES
    ]
    return [one for one in read if key_id is None or one.key_id == key_id]


def set_limits(
    connection: Connection,
    endpoint: str,
    values: Mapping[LimitKind, int | None],
    *,
    now_ms: int,
    key_id: str = "",
    reason: str | None = None,
) -> list[LimitChange]:
    """Sets limits, or clears those of which the value is None. Returns what changed.

    Workers tell a newer setting by `updated_ms`, so it rises even if the clock was set back.
    """
    before = fetch_limits(connection, endpoint, key_id=key_id)
    is_set = {one.kind: one for one in before if one.source is LimitSource.SET}
    at_ms = max(now_ms, 1 + max((one.updated_ms for one in is_set.values()), default=0))
    changes = []
    for kind, value in values.items():
        old = is_set.get(kind)
        if (None if old is None else old.value) == value:
            continue
        change = LimitChange(
            endpoint, key_id, kind, LimitSource.SET, at_ms, old.value if old else None, value, reason, None
        )
        _write(connection, change, facts=None)
        changes.append(change)
    return changes


def keep_found(
    connection: Connection,
    endpoint: str,
    *,
    value: int,
    facts: str,
    reason: str,
    worker_id: str,
    now_ms: int,
    key_id: str = "",
) -> None:
    """Remembers the limit that workers found, for the next run, and notes the change of its value."""
    stored = fetch_limits(connection, endpoint, key_id=key_id)
    is_found = (LimitKind.IN_FLIGHT, LimitSource.FOUND)
    old = next((one for one in stored if (one.kind, one.source) == is_found), None)
    change = LimitChange(
        endpoint,
        key_id,
        LimitKind.IN_FLIGHT,
        LimitSource.FOUND,
        now_ms,
        None if old is None else old.value,
        value,
        reason,
        worker_id,
    )
    if old is None or old.value != value:
        _write(connection, change, facts=facts)
    else:
        connection.execute(
            limits.update()
            .where(
                limits.c.endpoint == endpoint,
                limits.c.key_id == key_id,
                limits.c.kind == change.kind.value,
                limits.c.source == change.source.value,
            )
            .values(facts=facts, updated_ms=now_ms)
        )


def keep_told(
    connection: Connection,
    endpoint: str,
    *,
    key_id: str,
    kind: LimitKind,
    value: int | None,
    worker_id: str,
    now_ms: int,
) -> None:
    """Keeps a limit of a key that the endpoint tells, and the change of its value; None: it is not told any more."""
    stored = fetch_limits(connection, endpoint, key_id=key_id)
    of_header = [one for one in stored if (one.kind, one.source) == (kind, LimitSource.HEADER)]
    old = of_header[0].value if of_header else None
    if old != value:
        change = LimitChange(
            endpoint, key_id, kind, LimitSource.HEADER, now_ms, old, value, "told by the endpoint", worker_id
        )
        _write(connection, change, facts=None)
    elif of_header:
        connection.execute(
            limits.update()
            .where(
                limits.c.endpoint == endpoint,
                limits.c.key_id == key_id,
                limits.c.kind == kind.value,
                limits.c.source == LimitSource.HEADER.value,
            )
            .values(updated_ms=now_ms)
        )


def fetch_changes(connection: Connection, endpoint: str | None = None, *, at_most: int) -> list[LimitChange]:
    """The changes of an endpoint's limits, or of all, newest first, at most `at_most`."""
    query = _CHANGES if endpoint is None else _CHANGES.where(limit_changes.c.endpoint == endpoint)
    return [
        LimitChange(row[0], row[1], LimitKind(row[2]), LimitSource(row[3]), *row[4:])
        for row in connection.execute(query.limit(at_most)).all()
        if row[2] in _KINDS and row[3] in _SOURCES
    ]


def prune_changes(connection: Connection, endpoint: str, *, kept: int = KEPT_CHANGES) -> int:
    """Removes all but the newest changes of an endpoint, at most 500 at once. Returns how many."""
    of_endpoint = select(limit_changes.c.id).where(limit_changes.c.endpoint == endpoint)
    oldest_kept = connection.execute(
        of_endpoint.order_by(limit_changes.c.id.desc()).offset(kept - 1).limit(1)
    ).scalar()
    if oldest_kept is None:
        return 0
    old = of_endpoint.where(limit_changes.c.id < oldest_kept).order_by(limit_changes.c.id).limit(500)
    return connection.execute(delete(limit_changes).where(limit_changes.c.id.in_(old))).rowcount


def _write(connection: Connection, change: LimitChange, *, facts: str | None) -> None:
    reason = clean_text(change.reason)
    connection.execute(
        upsert(connection, limits, "endpoint", "key_id", "kind", "source"),
        {
            "endpoint": change.endpoint,
            "key_id": change.key_id,
            "kind": change.kind.value,
            "source": change.source.value,
            "value": change.new,
            "facts": facts,
            "reason": reason,
            "since_ms": change.at_ms,
            "updated_ms": change.at_ms,
        },
    )
    connection.execute(
        limit_changes.insert(),
        {
            "id": new_id(),
            "endpoint": change.endpoint,
            "key_id": change.key_id,
            "kind": change.kind.value,
            "source": change.source.value,
            "at_ms": change.at_ms,
            "old": change.old,
            "new": change.new,
            "reason": reason,
            "worker_id": change.worker_id,
        },
    )
