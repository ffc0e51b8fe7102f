"""The limits of an endpoint in the ledger, for the limiter of a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import orjson
import structlog

from worker.errors import AntreanError
from worker.policy.concurrency import Limit, parse_limit
from worker.storage.engine import Ledger, Transaction
from worker.storage.errors import DatabaseAway
from worker.storage.limits import (
    LimitKind,
    LimitSource,
    StoredLimit,
    fetch_limits,
    keep_found,
    prune_changes,
)
from worker.storage.workers import count_others, note_slots
from worker.throttle.limiter_needs import Known
from worker.throttle.limits import Fixed

log = structlog.get_logger(__name__)
_PRUNE_EVERY = 100  # changes that this worker wrote


class LedgerLimits:
    """The limits of one endpoint, as one worker reads and keeps them."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        endpoint: str,
        worker_id: str,
        filed_under: str | None = None,
        told: Fixed | None = None,
        count_slots: Callable[[], int] | None = None,
    ) -> None:
        """`filed_under`: what the workers' jobs are filed under, where that is not the endpoint.

        `told`: limits of the settings, which hold where none is set. `count_slots`: of the worker at all endpoints.
        """
        self._ledger = ledger
        self._endpoint = endpoint
        self._worker_id = worker_id
        self._filed_under = filed_under or endpoint
        self._told = told or Fixed()
        self._count_slots = count_slots
        self._written = 0
        self._stored: list[StoredLimit] = []  # of all keys, as they were read last
        self._has_others = False

    def fetch(self) -> Known | None:
        try:
            with self._ledger.read() as connection:
                self._stored = fetch_limits(connection, self._endpoint)
                others = count_others(connection, self._filed_under, worker_id=self._worker_id)
        except AntreanError:
            return None
        self._has_others = others > 0
        known = self.read_of("")
        return replace(known, fixed=_fill_in(known.fixed, self._told))

    def of_key(self, key_id: str) -> KeyLedgerLimits:
        """The limits of one of several keys. They are those that `fetch` found last."""
        return KeyLedgerLimits(self, key_id)

    def read_of(self, key_id: str) -> Known:
        """What `fetch` found last, of one key, or of the endpoint where the id is empty."""
        stored = [one for one in self._stored if one.key_id == key_id]
        return Known(fixed_limits(stored), find_limit(stored), has_others=self._has_others)

    def remember(self, limit: Limit, *, now_ms: int, key_id: str = "") -> bool:
        def work(connection: Transaction) -> None:
            keep_found(
                connection,
                self._endpoint,
                value=limit.value,
                facts=orjson.dumps(asdict(limit)).decode(),
                reason=limit.reason,
                worker_id=self._worker_id,
                now_ms=now_ms,
                key_id=key_id,
            )
            if self._written % _PRUNE_EVERY == 1:  # with its first one, too: many workers live for a minute
                prune_changes(connection, self._endpoint)

        self._written += 1
        return self._run(work)

    def note_slots(self, slots: int) -> bool:
        count = slots if self._count_slots is None else self._count_slots()
        return self._run(partial(note_slots, worker_id=self._worker_id, slots=count))

    def _run(self, work: Callable[[Transaction], object]) -> bool:
        try:
            self._ledger.run(work)
        except DatabaseAway:
            return False
        return True


class KeyLedgerLimits:
    """The found limit of one of several keys. What is set is of the endpoint, and slots are noted once for all keys."""

    def __init__(self, of_all: LedgerLimits, key_id: str) -> None:
        self._of_all = of_all
        self._key_id = key_id

    def fetch(self) -> Known | None:
        return replace(self._of_all.read_of(self._key_id), fixed=Fixed())

    def remember(self, limit: Limit, *, now_ms: int) -> bool:
        return self._of_all.remember(limit, now_ms=now_ms, key_id=self._key_id)

    def note_slots(self, slots: int) -> bool:
        return True


def fixed_limits(stored: list[StoredLimit]) -> Fixed:
    """The limits that are set."""
    is_set = {one.kind: one.value for one in stored if one.source is LimitSource.SET}
    return Fixed(
        in_flight=is_set.get(LimitKind.IN_FLIGHT),
        requests_per_minute=is_set.get(LimitKind.REQUESTS),
        tokens_per_minute=is_set.get(LimitKind.TOKENS),
        version_ms=max((one.updated_ms for one in stored if one.source is LimitSource.SET), default=0),
    )


def _fill_in(fixed: Fixed, told: Fixed) -> Fixed:
    """The limits that are set, and those of the settings where none is."""
    return replace(
        fixed,
        in_flight=told.in_flight if fixed.in_flight is None else fixed.in_flight,
        requests_per_minute=(
            told.requests_per_minute if fixed.requests_per_minute is None else fixed.requests_per_minute
        ),
        tokens_per_minute=told.tokens_per_minute
        if fixed.tokens_per_minute is None
        else fixed.tokens_per_minute,
    )


def find_limit(stored: list[StoredLimit]) -> Limit | None:
    """The limit that workers found; None if there is none, or another version wrote it."""
    for one in stored:
        if one.source is LimitSource.FOUND and one.kind is LimitKind.IN_FLIGHT and one.facts is not None:
            try:
                return parse_limit(orjson.loads(one.facts))
            except (TypeError, KeyError, ValueError):
                log.warning("limit.unreadable", endpoint=one.endpoint)
    return None
