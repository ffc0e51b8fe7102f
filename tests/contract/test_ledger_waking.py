"""Jobs that wait at a gate: their patience, which of them tries it, and who is woken when it opens."""

from __future__ import annotations

from functools import partial

import pytest

from schemas.failure import FailureKind
from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    claim,
    claim_one,
    job_row,
    put,
    put_one,
    record,
    setback,
    state,
)
from tests.support.upkeep import Broker
from worker.policy.patience import waiting_since_ms
from worker.storage.batches import hold_batch, make_batch
from worker.storage.due import take_due
from worker.storage.engine import Ledger
from worker.storage.gate_waits import has_other_jobs, take_probes, wake_blocked
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.store import MemoryGateStore
from worker.upkeep.relay import Relay

K = FailureKind
MINUTE = 60_000
HOUR = 60 * MINUTE


def block(ledger: Ledger, id_: str, *, at_ms: int, until_ms: int, kind: FailureKind = K.SERVER_ERROR) -> None:
    """One more refusal of the job, at `at_ms`."""
    ledger.run(lambda c: take_due(c, ENDPOINT, room=500, now_ms=at_ms))
    job = claim_one(ledger, id_, token=f"t{at_ms}", now_ms=at_ms)
    record(ledger, setback(job, kind=kind, not_before_ms=until_ms, burns=False, is_blocked=True))


def waited_ms(ledger: Ledger, id_: str, *, now_ms: int) -> int:
    """How long the job has waited by its next claim."""
    ledger.run(lambda c: take_due(c, ENDPOINT, room=500, now_ms=now_ms))
    job = claim_one(ledger, id_, token=f"w{now_ms}", now_ms=now_ms)
    assert job.blocked_since_ms is not None
    return now_ms - job.blocked_since_ms


def test_the_night_in_which_nobody_tried_is_not_patience(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    block(ledger, id_, at_ms=NOW, until_ms=NOW + 60_000)
    assert waited_ms(ledger, id_, now_ms=NOW + 10 * HOUR) == 60_000 + 15 * MINUTE


def test_the_time_in_which_somebody_tried_adds_up_to_patience(ledger: Ledger) -> None:
    id_, now_ms = put_one(ledger), NOW
    for _ in range(30):
        block(ledger, id_, at_ms=now_ms, until_ms=now_ms + 60_000)
        now_ms += 2 * MINUTE
    assert waited_ms(ledger, id_, now_ms=now_ms) == now_ms - NOW == HOUR


def test_nights_between_tries_count_once_each_and_only_a_quarter_of_an_hour(ledger: Ledger) -> None:
    id_ = put_one(ledger)
    for night in range(3):
        block(ledger, id_, at_ms=NOW + night * 10 * HOUR, until_ms=NOW + night * 10 * HOUR)
    assert waited_ms(ledger, id_, now_ms=NOW + 30 * HOUR) == 3 * 15 * MINUTE


def test_a_pause_that_was_asked_for_counts_however_long_it_is() -> None:
    assert waiting_since_ms(NOW, NOW + 3 * HOUR, now_ms=NOW + 3 * HOUR) == NOW
    assert waiting_since_ms(NOW, None, now_ms=NOW + 10 * MINUTE) == NOW
    assert waiting_since_ms(NOW + HOUR, NOW + HOUR, now_ms=NOW) == NOW, "a clock ran ahead"


def test_all_that_wait_at_a_gate_are_woken_in_steps_and_not_all_at_once(ledger: Ledger) -> None:
    ids = [job.id for job in put(ledger, *[a_job() for _ in range(700)])]
    for job in claim(ledger, *ids).values():
        record(ledger, setback(job, not_before_ms=NOW + 45_000, burns=False, is_blocked=True))
    assert ledger.run(partial(wake_blocked, endpoint=ENDPOINT, now_ms=NOW)) == 500
    assert ledger.run(partial(wake_blocked, endpoint=ENDPOINT, now_ms=NOW + 1000)) == 200
    assert ledger.run(partial(wake_blocked, endpoint=ENDPOINT, now_ms=NOW + 2000)) == 0
    due = sorted(job_row(ledger, id_).not_before_ms - NOW for id_ in ids)
    assert (due[0], due[-1] < 2000) == (0, True)
    assert len([one for one in due if one <= 100]) < 100


@pytest.mark.parametrize("what", ["a backoff", "a rate limit", "due soon", "another endpoint"])
def test_who_does_not_wait_at_the_gate_is_left_alone(ledger: Ledger, what: str) -> None:
    job = claim_one(ledger, put_one(ledger))
    until_ms = NOW + (1000 if what == "due soon" else 45_000)
    kind = K.RATE_LIMITED if what == "a rate limit" else K.SERVER_ERROR
    record(ledger, setback(job, kind=kind, not_before_ms=until_ms, is_blocked=what != "a backoff"))
    endpoint = "https://elsewhere.test" if what == "another endpoint" else ENDPOINT
    assert ledger.run(partial(wake_blocked, endpoint=endpoint, now_ms=NOW)) == 0
    assert job_row(ledger, job.id).not_before_ms == until_ms


def probe(ledger: Ledger, *, refused: tuple[str, ...] = (), is_for_others: bool = False) -> str | None:
    chosen, _ = ledger.run(
        lambda c: take_probes(
            c, ENDPOINT, after_batch="", now_ms=NOW + 1000, refused=refused, is_for_others=is_for_others
        )
    )
    assert len(chosen) <= 1
    return chosen[0].id if chosen else None


def test_a_probe_is_a_new_job_before_one_that_waits_and_last_of_all_one_that_was_refused(
    ledger: Ledger,
) -> None:
    refused, waits, other = put_one(ledger), put_one(ledger), put_one(ledger)
    block(ledger, refused, at_ms=NOW, until_ms=NOW + 100)
    block(ledger, other, at_ms=NOW, until_ms=NOW + 500)
    record(ledger, setback(claim_one(ledger, waits), not_before_ms=NOW + 900))
    new = put_one(ledger)
    found = [probe(ledger, refused=(refused,), is_for_others=others) for others in (False, False, True, True)]
    assert found == [new, waits, other, None]
    assert probe(ledger, refused=(refused,)) == refused
    assert state(ledger, refused) == "queued"
    assert job_row(ledger, refused).published_at_ms == NOW + 1000


def test_probes_take_the_batches_in_turn(ledger: Ledger) -> None:
    for batch in "ab":
        put(ledger, *[a_job(batch_id=batch, is_bulk=True) for _ in range(20)])
    after, seen = "", []
    for _ in range(4):
        chosen, after = ledger.run(partial(take_probes, endpoint=ENDPOINT, after_batch=after, now_ms=NOW))
        seen.append(job_row(ledger, chosen[0].id).batch_id)
    assert seen == ["a", "b", "a", "b"]


def test_a_held_run_gives_no_probe(ledger: Ledger) -> None:
    ledger.run(
        partial(
            make_batch,
            batch_id="a",
            kind="run",
            label="x",
            endpoint=ENDPOINT,
            idempotency_key="k",
            now_ms=NOW,
        )
    )
    ids = [job.id for job in put(ledger, *[a_job(batch_id="a", is_bulk=True) for _ in range(2)])]
    block(ledger, ids[0], at_ms=NOW, until_ms=NOW)
    ledger.run(partial(hold_batch, batch_id="a", now_ms=NOW))
    chosen, _ = ledger.run(
        partial(take_probes, endpoint=ENDPOINT, after_batch="", now_ms=NOW + 9, held=["a"])
    )
    assert chosen == []


@pytest.mark.parametrize("where", ["ready", "published", "running", "waiting", "ended", "elsewhere"])
def test_whether_another_job_could_be_asked(ledger: Ledger, where: str) -> None:
    mine = put_one(ledger)
    ask = partial(has_other_jobs, endpoint=ENDPOINT, job_id=mine)
    assert not ledger.run(ask)
    put_one(ledger, endpoint="https://elsewhere.test" if where == "elsewhere" else ENDPOINT)
    other = put_one(ledger) if where not in ("elsewhere",) else None
    if where == "published":
        ledger.run(lambda c: take_due(c, ENDPOINT, room=9, now_ms=NOW))
    if where in ("running", "waiting", "ended") and other is not None:
        job = claim_one(ledger, other)
        if where != "running":
            record(ledger, setback(job, not_before_ms=NOW + 9 if where == "waiting" else None))
    assert ledger.run(ask) is (where != "elsewhere")


def test_the_relay_wakes_those_who_wait_when_the_gate_opens(ledger: Ledger) -> None:
    clock, broker = FakeClock(NOW), Broker(ledger)
    keeper = Gatekeeper(MemoryGateStore(), clock, probe_ttl_s=60)
    relay = Relay(ledger, broker.publish, broker, keeper, clock, endpoint=ENDPOINT, republish_after_s=300)
    ids = [job.id for job in put(ledger, *[a_job() for _ in range(5)])]
    for job in claim(ledger, *ids).values():
        record(ledger, setback(job, not_before_ms=NOW + 45_000, burns=False, is_blocked=True))
    keeper.shut(K.SERVER_ERROR, asked_s=45.0)
    clock.advance(3)
    assert relay.tick() == 0
    keeper._store.clear()  # another process's probe has opened it
    clock.advance(0.3)
    relay.tick()
    clock.advance(1.0)
    relay.tick()
    assert sorted(broker.taken) == sorted(ids), "45 s before their time"


def test_a_probe_whose_worker_hangs_is_followed_by_another(ledger: Ledger) -> None:
    clock, broker = FakeClock(NOW), Broker(ledger)
    keeper = Gatekeeper(MemoryGateStore(), clock, probe_ttl_s=60)
    relay = Relay(ledger, broker.publish, broker, keeper, clock, endpoint=ENDPOINT, republish_after_s=300)
    put(ledger, *[a_job() for _ in range(9)])
    keeper.shut(K.TIMEOUT, asked_s=None)
    for _ in range(120):
        clock.advance(0.5)
        relay.tick()
    assert len(broker.taken) == len(set(broker.taken)) == 4, "and there is a limit"
