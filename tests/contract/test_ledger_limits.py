"""Limits in the ledger, on both databases: set, found, remembered, cleared, and how they changed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from uuid import uuid4

import pytest

from tests.support.ledger import NOW
from worker.ids import new_id
from worker.policy.concurrency import start
from worker.storage.engine import Ledger
from worker.storage.limits import (
    KEPT_CHANGES,
    LimitChange,
    LimitKind,
    LimitSource,
    StoredLimit,
    fetch_changes,
    fetch_limits,
    keep_found,
    keep_told,
    prune_changes,
    set_limits,
)
from worker.storage.tables import limit_changes
from worker.storage.tables import limits as limits_table
from worker.throttle.limits import Fixed
from worker.upkeep.limit_records import LedgerLimits

K, S = LimitKind, LimitSource


@pytest.fixture
def endpoint() -> str:
    return f"https://{uuid4().hex}.test"


def limits(ledger: Ledger, endpoint: str) -> list[StoredLimit]:
    with ledger.read() as connection:
        return fetch_limits(connection, endpoint)


def changes(ledger: Ledger, endpoint: str | None, at_most: int = 100) -> list[LimitChange]:
    with ledger.read() as connection:
        return fetch_changes(connection, endpoint, at_most=at_most)


def test_limits_are_set_and_cleared_one_by_one_and_each_change_is_kept(ledger: Ledger, endpoint: str) -> None:
    assert limits(ledger, endpoint) == []
    ledger.run(partial(set_limits, endpoint=endpoint, values={K.IN_FLIGHT: 60, K.REQUESTS: 600}, now_ms=NOW))
    ledger.run(partial(set_limits, endpoint=endpoint, values={K.IN_FLIGHT: 40}, now_ms=NOW + 10))
    ledger.run(partial(set_limits, endpoint=endpoint, values={K.REQUESTS: None}, now_ms=NOW + 20))
    assert {one.kind: (one.value, one.since_ms, one.source) for one in limits(ledger, endpoint)} == {
        K.IN_FLIGHT: (40, NOW + 10, S.SET),
        K.REQUESTS: (None, NOW + 20, S.SET),
    }
    told = [(one.kind, one.old, one.new, one.worker_id) for one in changes(ledger, endpoint)]
    assert told[:2] == [(K.REQUESTS, 600, None, None), (K.IN_FLIGHT, 60, 40, None)]
    assert len(told) == 4


def test_what_is_set_again_to_the_same_value_is_no_change(ledger: Ledger, endpoint: str) -> None:
    first = ledger.run(partial(set_limits, endpoint=endpoint, values={K.TOKENS: 9}, now_ms=NOW))
    assert len(first) == 1
    assert ledger.run(partial(set_limits, endpoint=endpoint, values={K.TOKENS: 9}, now_ms=NOW + 5)) == []
    assert ledger.run(partial(set_limits, endpoint=endpoint, values={K.REQUESTS: None}, now_ms=NOW)) == []
    assert [one.updated_ms for one in limits(ledger, endpoint)] == [NOW]


def test_a_later_setting_is_newer_also_by_a_clock_that_was_set_back(ledger: Ledger, endpoint: str) -> None:
    ledger.run(partial(set_limits, endpoint=endpoint, values={K.IN_FLIGHT: 60}, now_ms=NOW))
    ledger.run(partial(set_limits, endpoint=endpoint, values={K.IN_FLIGHT: 5}, now_ms=NOW - 9000))
    ledger.run(partial(set_limits, endpoint=endpoint, values={K.REQUESTS: 5}, now_ms=NOW - 9000))
    assert sorted(one.updated_ms for one in limits(ledger, endpoint)) == [NOW + 1, NOW + 2]


def test_a_found_limit_is_remembered_beside_a_set_one(ledger: Ledger, endpoint: str) -> None:
    keep = partial(keep_found, endpoint=endpoint, worker_id="w1")
    ledger.run(partial(set_limits, endpoint=endpoint, values={K.IN_FLIGHT: 60}, now_ms=NOW))
    ledger.run(partial(keep, value=32, facts='{"a": 1}', reason="doubled", now_ms=NOW + 1))
    ledger.run(partial(keep, value=32, facts='{"a": 2}', reason="the same", now_ms=NOW + 2))
    [found] = [one for one in limits(ledger, endpoint) if one.source is S.FOUND]
    assert found == StoredLimit(
        endpoint, "", K.IN_FLIGHT, S.FOUND, 32, '{"a": 2}', "doubled", NOW + 1, NOW + 2
    )
    ledger.run(partial(keep, value=24, facts="{}", reason="refused", now_ms=NOW + 3))
    assert [(one.old, one.new, one.reason, one.worker_id) for one in changes(ledger, endpoint)] == [
        (32, 24, "refused", "w1"),
        (None, 32, "doubled", "w1"),
        (None, 60, None, None),
    ]


def test_what_the_endpoint_tells_of_a_key_is_kept_beside_what_is_set(ledger: Ledger, endpoint: str) -> None:
    tell = partial(keep_told, endpoint=endpoint, key_id="abc", kind=K.REQUESTS, worker_id="w1")
    ledger.run(partial(set_limits, endpoint=endpoint, values={K.REQUESTS: 30}, now_ms=NOW))
    ledger.run(partial(tell, value=None, now_ms=NOW))
    assert len(limits(ledger, endpoint)) == 1, "nothing was told before"
    ledger.run(partial(tell, value=60, now_ms=NOW + 1))
    ledger.run(partial(tell, value=60, now_ms=NOW + 2))
    [told] = [one for one in limits(ledger, endpoint) if one.source is S.HEADER]
    assert told == StoredLimit(
        endpoint, "abc", K.REQUESTS, S.HEADER, 60, None, "told by the endpoint", NOW + 1, NOW + 2
    )
    ledger.run(partial(tell, value=None, now_ms=NOW + 3))
    found = [(one.key_id, one.source, one.old, one.new) for one in changes(ledger, endpoint)]
    assert found == [("abc", S.HEADER, 60, None), ("abc", S.HEADER, None, 60), ("", S.SET, None, 30)]


def test_each_endpoint_and_key_has_limits_of_its_own(ledger: Ledger, endpoint: str) -> None:
    other = endpoint + "/other"
    for of, key_id, value in ((endpoint, "", 1), (endpoint, "abc", 2), (other, "", 3)):
        ledger.run(partial(set_limits, endpoint=of, values={K.IN_FLIGHT: value}, key_id=key_id, now_ms=NOW))
    assert [(one.key_id, one.value) for one in limits(ledger, endpoint)] == [("", 1), ("abc", 2)]
    with ledger.read() as connection:
        assert [one.value for one in fetch_limits(connection, endpoint, key_id="abc")] == [2]
        assert {one.value for one in fetch_limits(connection) if one.endpoint.startswith(endpoint)} == {
            1,
            2,
            3,
        }
    assert len(changes(ledger, endpoint)) == 2


def test_only_the_newest_changes_are_kept(ledger: Ledger, endpoint: str) -> None:
    for value in range(1, 13):
        ledger.run(partial(set_limits, endpoint=endpoint, values={K.IN_FLIGHT: value}, now_ms=NOW))
    assert ledger.run(partial(prune_changes, endpoint=endpoint, kept=50)) == 0
    assert ledger.run(partial(prune_changes, endpoint=endpoint, kept=5)) == 7
    assert ledger.run(partial(prune_changes, endpoint=endpoint, kept=5)) == 0
    assert [one.new for one in changes(ledger, endpoint)] == [12, 11, 10, 9, 8]
    assert [one.new for one in changes(ledger, endpoint, at_most=2)] == [12, 11]


def test_a_worker_that_changes_a_limit_once_removes_old_changes(ledger: Ledger, endpoint: str) -> None:
    rows = [
        {
            "id": new_id(),
            "endpoint": endpoint,
            "key_id": "",
            "kind": K.IN_FLIGHT.value,
            "source": S.FOUND.value,
        }
        | {"at_ms": NOW, "old": 1, "new": 2, "reason": "test", "worker_id": None}
        for _ in range(KEPT_CHANGES + 9)
    ]
    ledger.run(lambda connection: connection.execute(limit_changes.insert(), rows))
    records = LedgerLimits(ledger, endpoint=endpoint, worker_id="worker")
    assert records.remember(start(None, cap=256, now_ms=NOW), now_ms=NOW)
    assert len(changes(ledger, endpoint, at_most=KEPT_CHANGES + 100)) == KEPT_CHANGES


def test_the_found_limit_of_a_key_is_kept_beside_those_of_others(ledger: Ledger, endpoint: str) -> None:
    records = LedgerLimits(ledger, endpoint=endpoint, worker_id="worker")
    of_key = records.of_key("abc")
    limit = start(None, cap=4, now_ms=NOW)
    assert of_key.remember(limit, now_ms=NOW)
    ledger.run(partial(set_limits, endpoint=endpoint, values={K.REQUESTS: 600}, now_ms=NOW))
    known = records.fetch()
    assert known is not None and (known.found, known.fixed.requests_per_minute) == (None, 600)
    told = of_key.fetch()
    assert told is not None and (told.found, told.fixed) == (limit, Fixed()), "what is set is of the endpoint"
    assert records.of_key("def").fetch() == replace(known, fixed=Fixed())
    assert [(one.key_id, one.new) for one in changes(ledger, endpoint) if one.source is S.FOUND] == [
        ("abc", 4)
    ]
    assert of_key.note_slots(7), "nothing is written: slots are of all keys"


@pytest.mark.parametrize(("kind", "source"), [("images_per_min", "set"), ("in_flight", "guessed")])
def test_a_limit_of_a_newer_version_stops_no_worker(
    ledger: Ledger, endpoint: str, kind: str, source: str
) -> None:
    of_one = {"endpoint": endpoint, "key_id": "", "kind": kind, "source": source, "reason": "test"}
    row = of_one | {"value": 7, "facts": None, "since_ms": NOW, "updated_ms": NOW}
    change = of_one | {"id": new_id(), "at_ms": NOW, "old": None, "new": 7, "worker_id": None}
    ledger.run(lambda connection: connection.execute(limits_table.insert(), row))
    ledger.run(lambda connection: connection.execute(limit_changes.insert(), change))
    known = LedgerLimits(ledger, endpoint=endpoint, worker_id="worker").fetch()
    assert known is not None and (known.fixed, known.found) == (Fixed(), None)
    assert changes(ledger, endpoint) == []
