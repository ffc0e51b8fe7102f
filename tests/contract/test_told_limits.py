"""The limits that an endpoint's headers tell, from the answer to the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_ledger_outages import Town
from tests.support.clock import FakeClock
from worker.storage.engine import Ledger
from worker.storage.limits import LimitKind, LimitSource, StoredLimit, fetch_changes, fetch_limits
from worker.throttle.told import ToldLimits
from worker.upkeep.told_limits import ToldRecords

MINUTE = {
    "x-ratelimit-limit-requests": "600",
    "x-ratelimit-remaining-requests": "599",
    "x-ratelimit-reset-requests": "100ms",
    "x-ratelimit-limit-tokens": "-1",
}


@pytest.fixture
def town(sqlite_ledger: Ledger, clock: FakeClock, tmp_path: Path) -> Iterator[Town]:
    town = Town(sqlite_ledger, clock, tmp_path / "house", told=ToldLimits())
    yield town
    town.close()


def stored(town: Town) -> list[StoredLimit]:
    with town.ledger.read() as connection:
        return fetch_limits(connection, town.house.endpoint)


def test_a_limit_of_a_minute_comes_to_the_ledger_once_many_answers_tell_it(town: Town) -> None:
    told = town.house.told
    records = ToldRecords(town.ledger, told, town.clock, endpoint=town.house.endpoint, worker_id="w1")
    town.endpoint.headers = MINUTE
    town.put(*[f"job {n}" for n in range(30)])
    town.live(1)
    records.keep()
    [one] = stored(town)
    [name] = town.house.credentials.names()
    assert (one.kind, one.source, one.value, one.key_id) == (
        LimitKind.REQUESTS,
        LimitSource.HEADER,
        600,
        name.id,
    )
    for _ in range(3):
        records.keep()
    assert stored(town) == [one], "what stays the same is not written at each beat"
    town.clock.advance(3601)
    records.keep()
    [again] = stored(town)
    assert again.updated_ms > one.updated_ms and again.since_ms == one.since_ms
    town.endpoint.headers = MINUTE | {
        "x-ratelimit-limit-requests": "1200",
        "x-ratelimit-reset-requests": "50ms",
    }
    town.put("one more")
    town.live(1)
    records.keep()
    assert [one.value for one in stored(town)] == [None], (
        "one answer that tells another is not enough for that"
    )
    with town.ledger.read() as connection:
        assert [one.new for one in fetch_changes(connection, town.house.endpoint, at_most=9)] == [None, 600]


def test_a_limit_of_a_day_stays_a_hint(town: Town) -> None:
    told = town.house.told
    records = ToldRecords(town.ledger, told, town.clock, endpoint=town.house.endpoint, worker_id="w1")
    town.endpoint.headers = MINUTE | {"x-ratelimit-reset-requests": "144s"}
    town.put(*[f"job {n}" for n in range(30)])
    town.live(1)
    records.keep()
    assert stored(town) == []
