"""What ended long ago leaves the ledger whole, and nothing else does."""

from __future__ import annotations

from dataclasses import astuple
from functools import partial

import pytest
from sqlalchemy import Connection, event, text

from schemas.failure import FailureKind
from schemas.job import JobState
from tests.contract.test_ledger_wants import a_batch as wanted_by
from tests.contract.test_ledger_wants import names, want
from tests.support.ledger import NOW, a_job, claim, put, record, rows, setback, success
from worker.cli.pruning import read_age_ms
from worker.errors import InputError
from worker.storage import prune_survey
from worker.storage.batches import finish_submission, make_batch
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_batch
from worker.storage.prune_survey import survey
from worker.storage.pruning import OfAge, OfBatch, Pruned, prune

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
    found = survey(ledger, OfAge(NOW + 5000))
    assert {id_: dict(share.counts) for id_, share in found.shares.items()} == {
        "old": {JobState.SUCCEEDED: 30},
        "mixed": {JobState.FAILED: 5},
    }
    assert (found.total.prompt_tokens, found.total.completion_tokens) == (30 * 3, 30 * 4)
    body, raw, answer = len('{"model":"m"}'), len('{"choices":[]}'), len("Hello")
    assert found.total.size_bytes == 30 * (body + raw + answer) + 5 * (body + len("no"))

    assert prune(ledger, OfAge(NOW + 5000), with_usage=False).removed == 35

    assert {row.id for row in rows(ledger, "jobs")} == {*young, *waiting}
    for table in BELONGINGS[:-1]:
        assert not {row.job_id for row in rows(ledger, table)} & set(old), table
    assert {row.job_id for row in rows(ledger, "requests")} == {*young, *waiting}
    assert {row.job_id for row in rows(ledger, "results")} == set(young)
    assert len(rows(ledger, "usage")) == 34, "what was paid stays known"
    assert [row.id for row in rows(ledger, "batches")] == ["mixed"]
    assert prune(ledger, OfAge(NOW + 5000), with_usage=False).removed == 0


def test_usage_goes_when_asked_for(ledger: Ledger) -> None:
    end_some(ledger, 3, ended_at_ms=NOW + 100)
    prune(ledger, OfAge(NOW + 5000), with_usage=True)
    assert rows(ledger, "usage") == []


def test_steps_are_small(ledger: Ledger) -> None:
    end_some(ledger, 400, ended_at_ms=NOW + 100)
    commits = 0

    def count(_: object) -> None:
        nonlocal commits
        commits += 1

    event.listen(ledger.engine, "commit", count)
    seen: list[int] = []
    assert prune(ledger, OfAge(NOW + 5000), with_usage=True, on_step=seen.append).removed == 400
    assert seen[0] == 20, "it feels its way"
    assert commits >= 3


def answer(ledger: Ledger, *ids: str) -> None:
    record(ledger, *(success(job) for job in claim(ledger, *ids, token=f"t{ids}").values()))


def some_want(ledger: Ledger, batch_id: str, *keys: str) -> list[str]:
    """A finished submission of jobs by their keys, which other batches may want too."""
    wanted_by(ledger, batch_id, kind="submit")
    ids = [job.id for job in want(ledger, batch_id, *keys)]
    ledger.run(partial(finish_submission, batch_id=batch_id, now_ms=NOW))
    return ids


def test_a_batch_goes_whatever_its_age_but_for_what_others_want(ledger: Ledger) -> None:
    x, y, z = some_want(ledger, "b1", "x", "y", "z")
    _, v = some_want(ledger, "b2", "y", "v")
    some_want(ledger, "b3", "v", "x")
    answer(ledger, x, y, z, v)
    found = survey(ledger, OfBatch("b1"))
    assert (found.total.total, found.spared, found.open) == (1, 2, 0)
    assert prune(ledger, OfBatch("b1"), with_usage=True) == Pruned(removed=1, spared=2, open=0)
    assert {row.id for row in rows(ledger, "jobs")} == {x, y, v}
    assert [row.id for row in rows(ledger, "batches")] == ["b2", "b3"]
    assert names(ledger, "b2") == ["b2/y", "b2/v"]
    assert names(ledger, "b3") == ["b3/v", "b3/x"]
    assert "b1" not in {row.batch_id for table in ("jobs", "wants", "usage") for row in rows(ledger, table)}
    assert {row.job_id for row in rows(ledger, "usage")} == {x, y, v}
    assert prune(ledger, OfBatch("b3"), with_usage=False) == Pruned(removed=1, spared=1, open=0)
    assert names(ledger, "b2") == ["b2/y", "b2/v"]


def test_what_a_cancelled_batch_has_of_it_stays_its(ledger: Ledger) -> None:
    [x] = some_want(ledger, "b1", "x")
    some_want(ledger, "b2", "x")
    while any(astuple(ledger.run(partial(cancel_batch, batch_id="b2", now_ms=NOW)))):
        pass
    answer(ledger, x)
    assert prune(ledger, OfBatch("b1"), with_usage=False) == Pruned(removed=0, spared=1, open=0)
    assert names(ledger, "b2") == ["b2/x"]


def test_what_has_not_ended_of_a_batch_stays_and_so_does_the_batch(ledger: Ledger) -> None:
    x, y = some_want(ledger, "b1", "x", "y")
    answer(ledger, x)
    found = survey(ledger, OfBatch("b1"))
    assert (found.total.total, found.spared, found.open) == (1, 0, 1)
    assert prune(ledger, OfBatch("b1"), with_usage=False) == Pruned(removed=1, spared=0, open=1)
    assert [(row.id, row.state) for row in rows(ledger, "jobs")] == [(y, "queued")]
    assert [row.total for row in rows(ledger, "batches")] == [2], "its results say that one is missing"


def test_a_batch_of_many_pages_goes_with_jobs_that_it_wants_twice(ledger: Ledger) -> None:
    keys = [f"k{i % 1200}" for i in range(1300)]
    ids = some_want(ledger, "b1", *keys)
    some_want(ledger, "b2", *keys[:600:2])
    with ledger.write() as connection:
        connection.execute(text("UPDATE jobs SET state = 'succeeded', ended_at_ms = 1"))
    found = survey(ledger, OfBatch("b1"))
    assert (found.total.total, found.spared) == (900, 300)
    assert prune(ledger, OfBatch("b1"), with_usage=False) == Pruned(removed=900, spared=300)
    assert {row.id for row in rows(ledger, "jobs")} == {ids[i] for i in range(0, 600, 2)}
    assert {row.batch_id for row in [*rows(ledger, "jobs"), *rows(ledger, "wants")]} == {"b2"}


def test_an_unfinished_batch_is_pruned_by_age_where_it_is_spelt_out_but_no_run_that_may_live(
    ledger: Ledger,
) -> None:
    [x, _] = some_want(ledger, "b1", "x", "open")
    wanted_by(ledger, "run")
    wanted_by(ledger, "killed")
    [y], [z] = ([job.id for job in want(ledger, batch, f"of {batch}")] for batch in ("run", "killed"))
    answer(ledger, x, y, z)
    assert prune(ledger, OfAge(NOW * 2), with_usage=False) == Pruned(removed=0, spared=3, open=0)
    what = OfAge(NOW * 2, even_unfinished=True, ended_runs=frozenset({"killed"}))
    found = survey(ledger, what)
    assert ({*found.shares}, found.spared) == ({"b1", "killed"}, 1)
    assert prune(ledger, what, with_usage=False) == Pruned(removed=2, spared=1, open=0)
    assert {row.id for row in rows(ledger, "jobs", state="succeeded")} == {y}
    assert {row.id for row in rows(ledger, "batches")} == {"b1", "run"}


def test_batches_past_the_first_thousand_are_told_together(
    sqlite_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_survey, "MOST_BATCHES", 2)
    for batch in ("", "b1", "b2", "b3"):
        end_some(sqlite_ledger, 2, ended_at_ms=NOW + 100, batch_id=batch)
    found = survey(sqlite_ledger, OfAge(NOW + 5000))
    assert ([*found.shares], found.rest.total, found.total.total) == (["", "b1"], 4, 8)


@pytest.mark.parametrize(("text", "ms"), [("90m", 5_400_000), ("36h", 129_600_000), ("30D", 2_592_000_000)])
def test_an_age_is_a_number_and_a_unit(text: str, ms: int) -> None:
    assert read_age_ms(text) == ms


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5d", "30 years"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="a number and a unit"):
        read_age_ms(text)
