"""Lists of jobs on both databases: in order, chosen by what they are, page by page."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import event

from schemas.failure import FailureKind
from schemas.job import JobState
from tests.contract.test_ledger_wants import a_batch, want
from tests.support.ledger import (
    NOW,
    a_job,
    claim,
    claim_one,
    give_back,
    put,
    put_one,
    record,
    setback,
    success,
)
from worker.storage.batches import hold_batch
from worker.storage.engine import Ledger
from worker.storage.job_list import Choice, ListedJob, Texts, count_open_lone, find_ids, iterate_jobs
from worker.storage.reading import iterate_lone_outcomes


def listed(ledger: Ledger, choice: Choice | None = None, **how: Any) -> list[ListedJob]:
    return list(iterate_jobs(ledger, choice or Choice(), **how))


def names(ledger: Ledger, choice: Choice, **how: Any) -> list[str | None]:
    return [job.custom_id for job in listed(ledger, choice, **how)]


def put_batch(ledger: Ledger, batch_id: str, count: int) -> list[str]:
    """Ids of jobs that are written down in the opposite order of their places."""
    new = [
        a_job(batch_id=batch_id, position=place, custom_id=f"c{place}", is_bulk=True)
        for place in range(count, 0, -1)
    ]
    return [job.id for job in reversed(put(ledger, *new))]


@pytest.mark.parametrize("looked_at", [1, 2, 3, 7, 100])
def test_a_batch_is_listed_in_the_order_of_its_input_whatever_the_page(
    ledger: Ledger, looked_at: int
) -> None:
    put_batch(ledger, a_batch(ledger, "b1"), 7)
    put_batch(ledger, a_batch(ledger, "b2"), 2)
    assert names(ledger, Choice("b1"), looked_at=looked_at) == [f"c{n}" for n in range(1, 8)]
    # A batch has one order, which is its input's.
    assert names(ledger, Choice("b1"), looked_at=looked_at, is_newest_first=True)[0] == "c1"


def test_a_job_whose_home_is_held_is_listed_as_held_whoever_asks(ledger: Ledger) -> None:
    first, second = want(ledger, a_batch(ledger, "b1"), "x", "y")
    want(ledger, a_batch(ledger, "b2"), "x")
    record(ledger, success(claim_one(ledger, second.id)))
    assert [job.is_held for job in listed(ledger)] == [False, False]
    for batch_id in ("b1", "b2"):
        ledger.run(partial(hold_batch, batch_id=batch_id, now_ms=NOW))
    for choice in (Choice(), Choice("b1"), Choice("b2")):
        assert {job.id: job.is_held for job in listed(ledger, choice)}[first.id], choice
    assert [job.is_held for job in listed(ledger) if job.id == second.id] == [False], "it has ended"


@pytest.mark.parametrize("looked_at", [1, 2, 5, 100])
def test_what_other_batches_made_is_listed_under_the_batchs_own_names(ledger: Ledger, looked_at: int) -> None:
    a_batch(ledger, "b1")
    a_batch(ledger, "b2")
    want(ledger, "b1", "x", "y")
    want(ledger, "b2", "n", "y", "x", "m")
    found = listed(ledger, Choice("b2"), looked_at=looked_at)
    assert [(job.custom_id, job.position, job.batch_id) for job in found] == [
        ("b2/n", 1, "b2"),
        ("b2/y", 2, "b2"),
        ("b2/x", 3, "b2"),
        ("b2/m", 4, "b2"),
    ]
    # By any of its names it is found in the ledger, where it is one job.
    [job] = listed(ledger, Choice(custom_ids=("b2/x",)), looked_at=looked_at)
    assert (job.batch_id, job.custom_id) == ("b1", "b1/x")
    assert names(ledger, Choice("b2", custom_ids=("b1/x", "b2/m")), looked_at=looked_at) == ["b2/m"]


@pytest.mark.parametrize("looked_at", [1, 2, 100])
def test_a_whole_ledger_is_listed_by_id_both_ways(ledger: Ledger, looked_at: int) -> None:
    ids = [put_one(ledger) for _ in range(3)] + [put_batch(ledger, a_batch(ledger, "b"), 1)[0]]
    assert [job.id for job in listed(ledger, looked_at=looked_at)] == ids
    assert [job.id for job in listed(ledger, looked_at=looked_at, is_newest_first=True)] == ids[::-1]


def test_lone_jobs_are_those_of_no_batch(ledger: Ledger) -> None:
    lone = [put_one(ledger, custom_id=f"l{n}") for n in range(3)]
    put_one(ledger, batch_id="named", custom_id="joined a batch")
    put_batch(ledger, a_batch(ledger, "b"), 2)
    put_one(ledger, is_bulk=True, custom_id="let go by its batch")
    for looked_at in (1, 2, 100):
        assert [job.id for job in listed(ledger, Choice(is_lone=True), looked_at=looked_at)] == lone
        newest = listed(ledger, Choice(is_lone=True), looked_at=looked_at, is_newest_first=True)
        assert [job.id for job in newest] == lone[::-1]
    assert {job.batch_id for job in listed(ledger, Choice(is_lone=True))} == {None}
    assert names(ledger, Choice("named")) == ["joined a batch"]
    with ledger.read() as connection:
        assert count_open_lone(connection) == 3


def test_jobs_are_chosen_by_state_kind_and_name(ledger: Ledger) -> None:
    ids = put_batch(ledger, a_batch(ledger, "b"), 5)
    got = claim(ledger, *ids[:4])
    record(
        ledger,
        success(got[ids[0]]),
        setback(got[ids[1]], kind=FailureKind.REJECTED),
        setback(got[ids[2]], kind=FailureKind.TIMEOUT, not_before_ms=NOW + 60_000),
        setback(got[ids[3]], kind=FailureKind.TIMEOUT),
    )
    for looked_at in (1, 2, 100):
        for choice, chosen in (
            (Choice("b", states=(JobState.FAILED,)), ["c2", "c4"]),
            (Choice("b", states=(JobState.QUEUED, JobState.SUCCEEDED)), ["c1", "c5"]),
            (Choice("b", kinds=(FailureKind.TIMEOUT,)), ["c3", "c4"]),
            (Choice("b", kinds=(FailureKind.TIMEOUT,), states=(JobState.FAILED,)), ["c4"]),
            (Choice("b", custom_ids=("c5", "c2")), ["c2", "c5"]),
            (Choice("b", custom_ids=("C5", "c%", "c")), []),
            (Choice(states=(JobState.EXPIRED,)), []),
        ):
            assert names(ledger, choice, looked_at=looked_at) == chosen
    waits = listed(ledger, Choice("b", states=(JobState.WAITING,)))[0]
    assert (waits.not_before_ms, waits.ended_at_ms, waits.failure_kind) == (NOW + 60_000, None, "timeout")


def test_texts_are_read_only_for_who_asks(ledger: Ledger) -> None:
    good, bad = put_batch(ledger, a_batch(ledger, "b"), 2)
    got = claim(ledger, good, bad)
    record(ledger, success(got[good]), setback(got[bad], message="too long", body=b'{"error":"\xff"}'))
    plain = listed(ledger, Choice("b"))
    assert {(job.request, job.answer, job.error, job.error_body) for job in plain} == {(None,) * 4}
    first, second = listed(ledger, Choice("b"), texts=frozenset(Texts))
    assert (first.request, first.answer, first.error) == ('{"model":"m"}', "Hello", None)
    assert (second.answer, second.error, second.error_body) == (None, "too long", b'{"error":"\xff"}')
    [asked] = listed(ledger, Choice("b", custom_ids=("c2",)), texts=frozenset({Texts.ERROR}))
    assert (asked.request, asked.error) == (None, "too long")


def test_a_result_comes_with_its_tokens_and_its_own_latency(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    record(ledger, give_back(claim_one(ledger, id_)))
    record(ledger, success(claim_one(ledger, id_, token="t2", now_ms=NOW + 1), latency_ms=77))
    [job] = listed(ledger)
    assert (job.state, job.claims, job.latency_ms, job.finish_reason) == (JobState.SUCCEEDED, 2, 77, "stop")
    assert (job.prompt_tokens, job.completion_tokens, job.failure_kind, job.http_status) == (3, 4, None, 200)


def test_ids_are_found_by_their_beginning_in_order(ledger: Ledger) -> None:
    for id_ in ("abc-2", "abc-1", "ABC-3", "ab%", "b"):
        put_one(ledger, id=id_)
    with ledger.read() as connection:
        assert find_ids(connection, "abc", limit=9) == ["abc-1", "abc-2"]
        assert find_ids(connection, "ab", limit=2) == ["ab%", "abc-1"]
        assert find_ids(connection, "ab%", limit=9) == ["ab%"]
        assert find_ids(connection, "_", limit=9) == []


def test_lone_results_are_theirs_alone_under_their_name_or_id(ledger: Ledger) -> None:
    named, unnamed, open_ = put_one(ledger, custom_id="n"), put_one(ledger), put_one(ledger)
    of_batch = put_batch(ledger, a_batch(ledger, "b"), 1)
    got = claim(ledger, named, unnamed, *of_batch)
    record(ledger, success(got[named]), setback(got[unnamed]), success(got[of_batch[0]]))
    assert [(one.id, one.custom_id) for one in iterate_lone_outcomes(ledger)] == [
        (named, "n"),
        (unnamed, unnamed),
    ]
    assert open_ in {job.id for job in listed(ledger, Choice(is_lone=True))}


def test_no_page_of_a_list_is_sorted_however_large_the_batch(ledger: Ledger) -> None:
    """A page that is sorted anew costs the whole batch for each page."""
    if ledger.is_postgresql:
        pytest.skip("its planner goes by the sizes of tables, which are small here")
    put_batch(ledger, a_batch(ledger, "b"), 3)
    put_one(ledger)
    seen: list[tuple[str, Any]] = []
    event.listen(
        ledger.engine,
        "before_cursor_execute",
        lambda c, cu, statement, args, *_: seen.append((statement, args)),
    )
    for choice in (
        Choice("b", states=(JobState.SUCCEEDED,)),
        Choice(states=(JobState.FAILED,)),
        Choice(is_lone=True),
    ):
        listed(ledger, choice, looked_at=2)
    with ledger.read() as connection:
        for statement, args in [one for one in seen if one[0].startswith("SELECT")]:
            plan = "\n".join(
                str(row[-1]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", args)
            )
            assert "TEMP B-TREE" not in plan, f"{statement}\n{plan}"
            assert "ix_jobs_batch (" not in plan, f"{statement}\n{plan}"
