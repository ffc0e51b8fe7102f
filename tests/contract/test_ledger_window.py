"""The relay's view of both databases: what is due, in which order, and by which index."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, text

from schemas.job import Due
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    at_once,
    claim,
    claim_one,
    job_row,
    put,
    put_one,
    record,
    setback,
    state,
    success,
)
from worker.policy.fairness import Account
from worker.storage.claims import claim_jobs
from worker.storage.clock_skew import cap_waits
from worker.storage.due import (
    START,
    count_live_slots,
    count_published,
    take_due,
    take_lone_due,
    unmark_published,
    unmark_published_before,
)
from worker.storage.engine import Ledger
from worker.storage.moves import expire_jobs
from worker.storage.pruning import _ENDED as PRUNED
from worker.storage.transitions import record_outcomes
from worker.storage.workers import end_worker, fetch_beats, register_worker, rescue_jobs


def take(
    ledger: Ledger, room: int, *, account: Account = START, now_ms: int = NOW
) -> tuple[list[Due], Account]:
    return ledger.run(lambda c: take_due(c, ENDPOINT, room=room, account=account, now_ms=now_ms))


def published(ledger: Ledger) -> int:
    with ledger.read() as connection:
        return count_published(connection, ENDPOINT)


def put_batch(ledger: Ledger, batch: str, n: int, **facts: Any) -> list[str]:
    return [job.id for job in put(ledger, *[a_job(batch_id=batch, is_bulk=True, **facts) for _ in range(n)])]


def wait(ledger: Ledger, not_before_ms: int, **facts: Any) -> str:
    id_ = put_one(ledger, **facts)
    record(ledger, setback(claim_one(ledger, id_, token=id_), not_before_ms=not_before_ms))
    return id_


def test_what_is_due_is_marked_and_not_taken_twice(ledger: Ledger) -> None:
    id_ = put_one(ledger, priority=2, is_bulk=True)
    due, _ = take(ledger, 5, now_ms=NOW + 3)
    assert due == [Due(id_, 2, True)]
    assert job_row(ledger, id_).published_at_ms == NOW + 3
    assert take(ledger, 5)[0] == []
    assert published(ledger) == 1


@pytest.mark.parametrize("room", [0, -3])
def test_without_room_nothing_is_due(ledger: Ledger, room: int) -> None:
    put_one(ledger)
    assert take(ledger, room, account=Account("b")) == ([], Account("b"))


def test_no_more_than_the_room_is_taken(ledger: Ledger) -> None:
    put_batch(ledger, "a", 10)
    put_batch(ledger, "b", 10)
    wait(ledger, NOW)
    put_one(ledger)
    assert len(take(ledger, 7)[0]) == 7
    assert published(ledger) == 7


def test_due_retries_come_first_then_lone_jobs_then_batches(ledger: Ledger) -> None:
    [bulk] = put_batch(ledger, "b", 1)
    lone = put_one(ledger)
    second, first = wait(ledger, NOW - 1), wait(ledger, NOW - 9)
    not_yet = wait(ledger, NOW + 1)
    due, _ = take(ledger, 10)
    assert [job.id for job in due] == [first, second, lone, bulk]
    assert state(ledger, not_yet) == "waiting"
    row = job_row(ledger, first)
    assert (row.state, row.not_before_ms, row.published_at_ms) == ("queued", None, NOW)


def test_batches_share_the_room_evenly_whatever_their_size(ledger: Ledger) -> None:
    ids = {batch: put_batch(ledger, batch, n) for batch, n in (("a", 300), ("b", 40), ("c", 40))}
    due, _ = take(ledger, 30)
    taken = {job.id for job in due}
    assert [len(taken & set(of)) for of in ids.values()] == [10, 10, 10]


def test_a_small_room_is_passed_on_from_batch_to_batch(ledger: Ledger) -> None:
    batch_of = {id_: name for name in "abc" for id_ in put_batch(ledger, name, 3)}
    account, order = START, []
    for _ in range(9):
        [job], account = take(ledger, 1, account=account)
        order.append(batch_of[job.id])
    assert order == list("abcabcabc")


def test_within_a_batch_the_priority_and_then_the_order_of_arrival_count(ledger: Ledger) -> None:
    late = put_batch(ledger, "b", 2, priority=9)
    urgent = put_batch(ledger, "b", 2, priority=1)
    assert [job.id for job in take(ledger, 3)[0]] == [*urgent, late[0]]


def test_another_endpoints_jobs_are_left_alone(ledger: Ledger) -> None:
    put_one(ledger, endpoint="https://other.test")
    put_one(ledger, endpoint="https://other.test", batch_id="b")
    assert take(ledger, 5)[0] == []
    assert published(ledger) == 0


def test_an_unmarked_job_is_due_again_and_a_claimed_one_is_left_alone(ledger: Ledger) -> None:
    lost, claimed = put_one(ledger), put_one(ledger)
    take(ledger, 5)
    claim_one(ledger, claimed)
    ledger.run(lambda c: unmark_published(c, [lost, claimed, "nobody"]))
    assert state(ledger, claimed) == "running"
    assert [job.id for job in take(ledger, 5)[0]] == [lost]


def test_more_than_five_hundred_are_unmarked_as_well(ledger: Ledger) -> None:
    ids = put_batch(ledger, "b", 501)
    for _ in range(2):
        take(ledger, 500)
    ledger.run(lambda c: unmark_published(c, ids))
    assert published(ledger) == 0


def test_what_was_published_long_ago_is_due_again(ledger: Ledger) -> None:
    old, claimed, fresh = put_one(ledger), put_one(ledger), put_one(ledger)
    take(ledger, 2, now_ms=NOW)
    claim_one(ledger, claimed)
    take(ledger, 2, now_ms=NOW + 50)
    assert ledger.run(lambda c: unmark_published_before(c, ENDPOINT, NOW + 50)) == 1
    assert job_row(ledger, old).published_at_ms is None
    assert job_row(ledger, fresh).published_at_ms == NOW + 50
    assert ledger.run(lambda c: unmark_published_before(c, "https://other.test", NOW + 99)) == 0


def test_slots_are_those_of_the_endpoints_live_workers(ledger: Ledger) -> None:
    for id_, endpoint, slots in (
        ("w1", ENDPOINT, 4),
        ("w2", ENDPOINT, 8),
        ("w3", "x", 100),
        ("w4", ENDPOINT, 9),
    ):
        ledger.run(
            lambda c, id_=id_, endpoint=endpoint, slots=slots: register_worker(
                c, id_, endpoint=endpoint, hostname="", pid=1, slots=slots, lease_ms=1, now_ms=NOW
            )
        )
    ledger.run(lambda c: end_worker(c, "w4", reason="lost", now_ms=NOW))
    with ledger.read() as connection:
        assert count_live_slots(connection, ENDPOINT) == 12
        assert count_live_slots(connection, "nobody") == 0


def test_four_relays_at_once_take_each_job_once(ledger: Ledger) -> None:
    ids = put_batch(ledger, "a", 100) + put_batch(ledger, "b", 100)

    def relay(i: int) -> list[str]:
        mine: list[str] = []
        for _ in range(30):
            mine += [job.id for job in take(ledger, 10)[0]]
        return mine

    taken = Counter(id_ for mine in at_once(4, relay) for id_ in mine)
    assert taken == Counter(ids)


def test_relay_claim_and_expiry_side_by_side_keep_each_move_legal(ledger: Ledger) -> None:
    ids = put_batch(ledger, "a", 150, expires_at_ms=NOW + 5)

    def work(i: int) -> None:
        for start in range(0, 150, 15):
            if i == 0:
                take(ledger, 15)
            elif i == 1:
                claim(ledger, *ids[start : start + 5], token=f"t{start}")
            else:
                ledger.run(lambda c: expire_jobs(c, now_ms=NOW + 5))

    at_once(3, work)
    for id_ in ids:
        row = job_row(ledger, id_)
        assert row.state in ("running", "expired")
        assert row.published_at_ms is None
        assert (row.ended_at_ms is None) == (row.state == "running")


def _plans(ledger: Ledger, work: Callable[[Any], Any]) -> str:
    """The plans of all statements on jobs that `work` executes, as the database explains them."""
    seen: list[tuple[str, Any]] = []

    def listen(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if "jobs" in statement:
            seen.append((statement, parameters))

    event.listen(ledger.engine, "before_cursor_execute", listen)
    try:
        ledger.run(work)
    finally:
        event.remove(ledger.engine, "before_cursor_execute", listen)
    lines: list[str] = []
    with ledger.write() as connection:
        for statement, parameters in seen:
            lines += ["", statement]
            if ledger.is_postgresql:
                # The plan of a prepared statement, which has to do for any values.
                names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
                for number, name in enumerate(names, start=1):
                    statement = statement.replace(f"%({name})s", f"${number}")
                found = connection.exec_driver_sql(f"EXPLAIN (GENERIC_PLAN) {statement}")
            else:
                found = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            lines += [" ".join(str(value) for value in row) for row in found]
    return "\n".join(lines)


@pytest.fixture
def crowded(ledger: Ledger, analyze: Callable[[Ledger], None]) -> Ledger:
    """Some thousands of jobs that ended, and a few of everything else."""
    put_batch(ledger, "old", 4000)
    with ledger.write() as connection:
        connection.execute(text("UPDATE jobs SET state = 'succeeded', ended_at_ms = 1, worker_id = 'w0'"))
    put_batch(ledger, "b", 600)
    put_batch(ledger, "c", 10, expires_at_ms=NOW + 99_999)
    put_one(ledger)
    take(ledger, 12)
    wait(ledger, NOW)
    claim_one(ledger, put_one(ledger))
    analyze(ledger)
    return ledger


@pytest.mark.parametrize(
    ("index", "work"),
    [
        ("ix_jobs_ready", lambda c: take_due(c, ENDPOINT, room=5, account=Account("b"), now_ms=NOW)),
        ("ix_jobs_due", lambda c: take_due(c, ENDPOINT, room=5, account=Account("b"), now_ms=NOW)),
        ("ix_jobs_due_batch", lambda c: take_due(c, ENDPOINT, room=5, account=Account("b"), now_ms=NOW)),
        ("ix_jobs_due_lone", lambda c: take_lone_due(c, ENDPOINT, window=5, now_ms=NOW)),
        ("ix_jobs_ready_lone", lambda c: take_lone_due(c, ENDPOINT, window=5, now_ms=NOW)),
        ("ix_jobs_retries", lambda c: cap_waits(c, ENDPOINT, now_ms=NOW, usual_ms=1, longest_ms=2)),
        ("ix_jobs_published", lambda c: count_published(c, ENDPOINT)),
        ("ix_jobs_published", lambda c: unmark_published_before(c, ENDPOINT, NOW)),
        ("ix_jobs_running", lambda c: rescue_jobs(c, "w1", max_solo_losses=3, now_ms=NOW)),
        ("ix_jobs_running", fetch_beats),
        ("ix_jobs_expiring", lambda c: expire_jobs(c, now_ms=NOW + 100_000)),
        ("ix_jobs_ended", lambda c: list(c.execute(PRUNED, {"before_ms": NOW, "at_most": 5}))),
    ],
)
def test_what_is_asked_all_the_time_is_answered_by_a_partial_index(
    crowded: Ledger, index: str, work: Callable[[Any], Any]
) -> None:
    plans = _plans(crowded, work)
    assert index in plans, plans
    assert "Seq Scan on jobs" not in plans, plans
    assert "SCAN jobs\n" not in plans, plans


def test_a_claim_and_a_record_go_by_the_jobs_ids(crowded: Ledger) -> None:
    ids = put_batch(crowded, "d", 3)
    claimed = claim(crowded, *ids[:2], token="t-d")

    def work(connection: Any) -> None:
        record_outcomes(connection, [success(job) for job in claimed.values()])
        claim_jobs(connection, ids, worker_id="w1", token="t-e", endpoint=ENDPOINT, now_ms=NOW)

    plans = _plans(crowded, work)
    assert ("jobs_pkey" if crowded.is_postgresql else "sqlite_autoindex_jobs_1") in plans, plans
    assert "Seq Scan on jobs" not in plans, plans
    assert "SCAN jobs\n" not in plans, plans


def test_the_statements_of_the_hot_path_are_the_same_for_any_number_of_jobs(ledger: Ledger) -> None:
    """So that PostgreSQL plans them once."""
    seen: list[str] = []

    def listen(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    ids = put_batch(ledger, "d", 8)
    texts: list[set[str]] = []
    for chosen in (ids[:1], ids[1:]):
        event.listen(ledger.engine, "before_cursor_execute", listen)
        claimed = claim(ledger, *chosen, token=f"t{len(chosen)}")
        assert len(claimed) == len(chosen)
        record(ledger, *[success(job) for job in claimed.values()])
        event.remove(ledger.engine, "before_cursor_execute", listen)
        texts.append(set(seen))
        seen.clear()
    assert texts[0] == texts[1] != set()
