"""What ended long ago leaves the ledger whole, and nothing else does."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, event

from schemas.failure import FailureKind
from tests.support.ledger import NOW, a_job, claim, put, record, rows, setback, success
from worker.cli.pruning import read_age_ms
from worker.errors import InputError
from worker.storage.batches import finish_submission, make_batch
from worker.storage.engine import Ledger
from worker.storage.pruning import count_ended, prune

BELONGINGS = ("requests", "attempts", "results", "failure_bodies", "details", "usage")


def end_some(
    ledger: Ledger, count: int, *, ended_at_ms: int, batch_id: str = "", fail: bool = False
) -> list[str]:
    """Ids of so many jobs that ended then."""
    ids = [
        job.id
        for job in put(ledger, *[a_job(batch_id=batch_id, user_metadata={"a": 1}) for _ in range(count)])
    ]
    claimed = claim(ledger, *ids, token=f"t{ended_at_ms}{batch_id}")
    if fail:
        outcomes = [
            setback(job, kind=FailureKind.REJECTED, ended_at_ms=ended_at_ms, body=b"no")
            for job in claimed.values()
        ]
        record(ledger, *outcomes)
    else:
        record(ledger, *[success(job, ended_at_ms=ended_at_ms) for job in claimed.values()])
    return ids


def a_batch(ledger: Ledger, id_: str) -> None:
    def work(connection: Connection) -> None:
        make_batch(connection, id_, kind="submit", label="x", endpoint="e", idempotency_key=id_, now_ms=NOW)
        finish_submission(connection, id_, now_ms=NOW)

    ledger.run(work)


def test_what_ended_before_then_goes_with_all_that_belongs_to_it(ledger: Ledger) -> None:
    a_batch(ledger, "old")
    a_batch(ledger, "mixed")
    old = end_some(ledger, 30, ended_at_ms=NOW + 100, batch_id="old")
    old += end_some(ledger, 5, ended_at_ms=NOW + 100, batch_id="mixed", fail=True)
    young = end_some(ledger, 4, ended_at_ms=NOW + 5000, batch_id="mixed")
    waiting = [job.id for job in put(ledger, a_job(), a_job())]
    with ledger.read() as connection:
        assert count_ended(connection, before_ms=NOW + 5000) == 35

    assert prune(ledger, before_ms=NOW + 5000, with_usage=False) == 35

    assert {row.id for row in rows(ledger, "jobs")} == {*young, *waiting}
    for table in BELONGINGS[:-1]:
        assert not {row.job_id for row in rows(ledger, table)} & set(old), table
    assert {row.job_id for row in rows(ledger, "requests")} == {*young, *waiting}
    assert {row.job_id for row in rows(ledger, "results")} == set(young)
    assert len(rows(ledger, "usage")) == 34, "what was paid stays known"
    assert [row.id for row in rows(ledger, "batches")] == ["mixed"]
    assert prune(ledger, before_ms=NOW + 5000, with_usage=False) == 0


def test_usage_goes_when_asked_for(ledger: Ledger) -> None:
    end_some(ledger, 3, ended_at_ms=NOW + 100)
    prune(ledger, before_ms=NOW + 5000, with_usage=True)
    assert rows(ledger, "usage") == []


def test_steps_are_small(ledger: Ledger) -> None:
    end_some(ledger, 400, ended_at_ms=NOW + 100)
    commits = 0

    def count(_: object) -> None:
        nonlocal commits
        commits += 1

    event.listen(ledger.engine, "commit", count)
    seen: list[int] = []
    assert prune(ledger, before_ms=NOW + 5000, with_usage=True, on_step=seen.append) == 400
    assert seen[0] == 20, "it feels its way"
    assert commits >= 3


@pytest.mark.parametrize(("text", "ms"), [("90m", 5_400_000), ("36h", 129_600_000), ("30D", 2_592_000_000)])
def test_an_age_is_a_number_and_a_unit(text: str, ms: int) -> None:
    assert read_age_ms(text) == ms


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5d", "30 years"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="a number and a unit"):
        read_age_ms(text)
