"""Who gets into a window, on both databases: every batch has its share, whatever became of its jobs."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest

from schemas.job import Due
from tests.support.clock import FakeClock
from tests.support.ledger import ENDPOINT, NOW, a_job, claim, claim_one, put, put_one, record, setback
from tests.support.upkeep import Broker
from worker.policy.fairness import Account
from worker.storage.batches import hold_batch, make_batch, resume_batch
from worker.storage.due import START, take_due, take_lone_due
from worker.storage.engine import Ledger
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.store import MemoryGateStore
from worker.upkeep.relay import WINDOW_FLOOR, Relay


@pytest.fixture
def broker(ledger: Ledger) -> Broker:
    return Broker(ledger)


@pytest.fixture
def relay(ledger: Ledger, broker: Broker, clock: FakeClock) -> Relay:
    gatekeeper = Gatekeeper(MemoryGateStore(), clock, probe_ttl_s=60.0)
    return Relay(
        ledger, broker.publish, broker, gatekeeper, clock, endpoint=ENDPOINT, republish_after_s=300.0
    )


def put_ready(ledger: Ledger, batch: str, n: int, **facts: Any) -> list[str]:
    facts = {"batch_id": batch, "is_bulk": True} | facts
    return [job.id for job in put(ledger, *[a_job(**facts) for _ in range(n)])]


def put_refused(ledger: Ledger, batch: str, n: int, *, due_ms: int = NOW, **facts: Any) -> list[str]:
    """So many jobs that were called once, refused, and are due again at `due_ms`."""
    ids = put_ready(ledger, batch, n, **facts)
    jobs = claim(ledger, *ids, token=f"refused-{batch}-{ids[0]}").values()
    record(ledger, *[setback(job, not_before_ms=due_ms, burns=False) for job in jobs])
    return ids


def take(ledger: Ledger, room: int, *, account: Account = START, **how: Any) -> tuple[list[str], Account]:
    due, account = ledger.run(
        lambda c: take_due(c, ENDPOINT, room=room, account=account, now_ms=NOW + 1, **how)
    )
    return [job.id for job in due], account


def test_a_batch_that_is_always_refused_leaves_the_others_their_share(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock
) -> None:
    refused = set(put_refused(ledger, "a", 300, due_ms=1))
    other = put_ready(ledger, "b", 24)
    windows = 0
    while not set(other) <= set(broker.taken):
        before, windows = len(broker.taken), windows + 1
        assert windows < 5, f"{len(set(other) & set(broker.taken))} of {len(other)} were published"
        relay.tick()
        jobs = claim(ledger, *broker.taken[before:], token=f"t{windows}", now_ms=clock.now_ms())
        soon_ms = clock.now_ms() + 500
        record(ledger, *[setback(job, not_before_ms=soon_ms, burns=False) for job in jobs.values()])
        clock.advance(1.0)
    assert len(refused & set(broker.taken)) > 2 * WINDOW_FLOOR / 3, "nor does it starve itself"


def test_thousands_that_are_due_at_the_same_moment_are_shared_out_evenly(ledger: Ledger) -> None:
    crowds = {name: set(put_refused(ledger, name, n)) for name, n in (("a", 400), ("b", 60), ("c", 30))}
    ready = set(put_ready(ledger, "d", 60))
    ids, _ = take(ledger, 40)
    assert [len(set(ids) & crowd) for crowd in (*crowds.values(), ready)] == [10, 10, 10, 10]


def test_what_a_small_batch_leaves_of_its_share_is_for_the_others(ledger: Ledger) -> None:
    put_refused(ledger, "a", 100)
    put_ready(ledger, "b", 2)
    put_refused(ledger, "c", 3)
    put_ready(ledger, "d", 100)
    ids, _ = take(ledger, 60)
    assert len(ids) == len(set(ids)) == 60


def test_retries_of_a_batch_leave_half_of_its_share_to_its_untried_jobs(ledger: Ledger) -> None:
    retries, ready = put_refused(ledger, "a", 50), put_ready(ledger, "a", 50)
    ids, _ = take(ledger, 20)
    assert ids[:10] == [id_ for id_ in ids if id_ in retries], "retries first"
    assert set(ids[10:]) <= set(ready)


def test_a_batch_without_untried_jobs_has_its_whole_share_for_retries(ledger: Ledger) -> None:
    put_refused(ledger, "a", 50)
    put_ready(ledger, "a", 3)
    assert len(take(ledger, 20)[0]) == 20


def test_lone_retries_take_half_of_a_window_at_most_where_others_wait(ledger: Ledger) -> None:
    lone, bulk = put_refused(ledger, "", 80), put_ready(ledger, "b", 80)
    ids, _ = take(ledger, 20)
    assert (len(set(ids) & set(lone)), len(set(ids) & set(bulk))) == (10, 10)
    ledger.run(lambda c: make_batch(c, "b", kind="run", label="", endpoint="", idempotency_key="b", now_ms=1))
    assert len(set(take(ledger, 20, held=["b"])[0]) & set(lone)) == 20, "nobody else does"


def test_lone_retries_that_come_again_and_again_do_not_keep_new_lone_jobs_out(ledger: Ledger) -> None:
    put_refused(ledger, "", 80, is_bulk=False)
    new = [put_one(ledger) for _ in range(5)]
    due = ledger.run(lambda c: take_lone_due(c, ENDPOINT, window=16, now_ms=NOW + 1))
    assert set(new) <= {job.id for job in due}
    assert len(due) == 16


def test_a_lone_job_that_names_a_batch_is_published_again_as_a_lone_one(ledger: Ledger) -> None:
    """Beside a window that bulk fills: its hint was lost, its worker died, or a gate was shut when it came."""
    for name in "abcdefgh":
        put_ready(ledger, name, 100)
    named = put_one(ledger, batch_id="nightly")
    due = ledger.run(lambda c: take_lone_due(c, ENDPOINT, window=16, now_ms=NOW))
    assert due == [Due(named, 0, is_bulk=False)]
    assert named not in take(ledger, 500)[0], "and once only"


def test_a_bulk_job_that_its_batch_let_go_of_takes_no_room_of_lone_jobs(ledger: Ledger) -> None:
    homeless = put_ready(ledger, "", 5)
    assert ledger.run(lambda c: take_lone_due(c, ENDPOINT, window=16, now_ms=NOW)) == []
    assert set(take(ledger, 16)[0]) == set(homeless)


def test_a_small_room_goes_from_batch_to_batch_whether_they_are_retries_or_not(ledger: Ledger) -> None:
    batch_of = dict.fromkeys(put_refused(ledger, "a", 3), "a")
    batch_of |= dict.fromkeys(put_ready(ledger, "b", 3), "b")
    batch_of |= dict.fromkeys(put_refused(ledger, "c", 3), "c")
    account, order = START, []
    for _ in range(9):
        [id_], account = take(ledger, 1, account=account)
        order.append(batch_of[id_])
    assert order == list("abcabcabc")


def test_batches_whose_retries_are_not_due_are_stepped_over(ledger: Ledger) -> None:
    for number in range(30):
        put_refused(ledger, f"b{number:02}", 1, due_ms=NOW + 9_999)
    due = put_refused(ledger, "b99", 2)
    assert set(take(ledger, 2)[0]) == set(due)


def test_of_more_batches_than_share_a_window_each_has_its_turn(ledger: Ledger) -> None:
    for number in range(150):
        put_ready(ledger, f"b{number:03}", 4)
    account, counts = START, Counter[str]()
    for _ in range(3):
        ids, account = take(ledger, 200, account=account)
        counts.update(ids)
    assert sum(counts.values()) == 600
    assert take(ledger, 10)[0] == []


def test_a_probe_is_another_job_than_the_refused_ones_if_there_is_one(ledger: Ledger) -> None:
    refused = put_refused(ledger, "a", 3)
    given_back = put_ready(ledger, "b", 1)
    job = claim_one(ledger, given_back[0], token="gb")
    record(ledger, setback(job, not_before_ms=NOW))
    due = ledger.run(
        lambda c: take_due(c, ENDPOINT, room=9, account=Account("a"), now_ms=NOW + 1, held=["a"])
    )
    assert [one.id for one in due[0]] == given_back
    from worker.storage.due import unmark_published  # local: only here is one taken back

    ledger.run(lambda c: unmark_published(c, given_back))  # it is ready now, but was called
    [untried] = put_ready(ledger, "c", 1)
    assert take(ledger, 1, prefer_untried=True)[0] == [untried]
    ids = [take(ledger, 1, prefer_untried=True)[0] for _ in range(4)]
    assert {id_ for some in ids for id_ in some} == {*refused, *given_back}, "without one, any will do"


def test_a_probe_is_none_of_a_held_batch(ledger: Ledger) -> None:
    put_ready(ledger, "a", 3)
    [other] = put_refused(ledger, "b", 1)
    assert take(ledger, 1, prefer_untried=True, held=["a"])[0] == [other]


def test_published_jobs_of_a_run_that_is_held_take_no_room_from_others(
    ledger: Ledger, relay: Relay, broker: Broker
) -> None:
    for id_ in ("batch_a", "batch_b"):
        ledger.run(
            partial(
                make_batch,
                batch_id=id_,
                kind="run",
                label="",
                endpoint=ENDPOINT,
                idempotency_key=id_,
                now_ms=1,
            )
        )
    put_ready(ledger, "batch_a", 100)
    relay.tick()
    assert len(broker.taken) == WINDOW_FLOOR
    ledger.run(partial(hold_batch, batch_id="batch_a", now_ms=NOW))
    other = put_ready(ledger, "batch_b", 10)
    relay.tick()
    assert set(other) <= set(broker.taken)
    ledger.run(partial(resume_batch, batch_id="batch_a"))
    for id_ in other:
        claim_one(ledger, id_, token=id_)
    broker.taken.clear()
    relay.tick()
    assert len(broker.taken) == WINDOW_FLOOR, "let go on, it is published again"


def test_priorities_count_within_a_batch_and_not_against_others(ledger: Ledger) -> None:
    late, urgent = put_ready(ledger, "a", 20, priority=9), put_ready(ledger, "a", 20, priority=0)
    other = put_ready(ledger, "b", 20, priority=9)
    ids, _ = take(ledger, 20)
    assert (len(set(ids) & set(urgent)), len(set(ids) & set(other)), len(set(ids) & set(late))) == (10, 10, 0)


def test_a_due_retry_is_published_where_it_belongs(ledger: Ledger) -> None:
    [id_] = put_refused(ledger, "a", 1, priority=4)
    due, _ = ledger.run(lambda c: take_due(c, ENDPOINT, room=5, now_ms=NOW + 1))
    assert due == [Due(id_, 4, True)]
