"""What the endpoint says of its limits, through a whole worker's parts: who waits, how long, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_ledger_outages import Town
from tests.support.clock import FakeClock
from tests.support.ledger import job_row
from tests.support.moody import completion
from worker.storage.engine import Ledger

BUSY = {
    "error": {"message": "Rate limit reached for m. Please try again in 7s.", "code": "rate_limit_exceeded"}
}


@pytest.fixture
def town(sqlite_ledger: Ledger, clock: FakeClock, tmp_path: Path) -> Iterator[Town]:
    town = Town(sqlite_ledger, clock, tmp_path / "house")
    yield town
    town.close()


def burnt(town: Town, ids: list[str]) -> set[int]:
    return {job_row(town.ledger, id_).attempts for id_ in ids}


def test_the_wait_in_a_refusals_words_is_obeyed_by_all_jobs_and_burns_nothing(town: Town) -> None:
    ids = town.put("a", "b", "c")
    town.endpoint.decide = lambda _: (429, BUSY)
    town.live(6.5)
    assert town.endpoint.calls.total() == 1
    town.endpoint.decide = completion
    town.live(5, until=lambda: town.states(ids) == {"succeeded"})
    assert town.states(ids) == {"succeeded"} and burnt(town, ids) == {0}
    assert town.endpoint.calls.total() == 4
