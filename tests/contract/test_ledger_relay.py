"""The relay on both databases, with a broker and a clock that do as they are told."""

from __future__ import annotations

import pytest

from schemas.failure import FailureKind
from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    a_job,
    claim_one,
    put,
    put_one,
)
from tests.support.upkeep import Broker, add_worker
from worker.errors import BrokerAway
from worker.storage.due import count_published
from worker.storage.engine import Ledger
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.store import MemoryGateStore
from worker.upkeep.relay import WINDOW_FLOOR, Relay


@pytest.fixture
def broker(ledger: Ledger) -> Broker:
    return Broker(ledger)


@pytest.fixture
def gatekeeper(clock: FakeClock) -> Gatekeeper:
    return Gatekeeper(MemoryGateStore(), clock, probe_ttl_s=60.0)


@pytest.fixture
def relay(ledger: Ledger, broker: Broker, gatekeeper: Gatekeeper, clock: FakeClock) -> Relay:
    return Relay(
        ledger, broker.publish, broker, gatekeeper, clock, endpoint=ENDPOINT, republish_after_s=300.0
    )


def published(ledger: Ledger) -> int:
    with ledger.read() as connection:
        return count_published(connection, ENDPOINT)


def test_invariant_2_written_down_before_it_is_queued_and_published_once(
    ledger: Ledger, relay: Relay, broker: Broker
) -> None:
    id_ = put_one(ledger)
    assert relay.tick() == 1
    assert (broker.taken, broker.states) == ([id_], {"queued"})
    assert relay.tick() == 0


def test_a_broker_that_is_away_leaves_the_jobs_to_the_next_tick(
    ledger: Ledger, relay: Relay, broker: Broker
) -> None:
    id_ = put_one(ledger)
    broker.is_away = True
    with pytest.raises(BrokerAway):
        relay.tick()
    assert published(ledger) == 0
    broker.is_away = False
    assert relay.tick() == 1
    assert broker.taken == [id_]


def test_what_a_broker_forgot_is_published_again(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock
) -> None:
    ids = {put_one(ledger) for _ in range(3)}
    relay.tick()
    claim_one(ledger, min(ids))
    clock.advance(1)
    broker.taken.clear()
    broker.has_mark = False
    assert relay.tick() == 2
    assert set(broker.taken) == ids - {min(ids)}
    assert broker.has_mark


def test_after_a_broken_connection_what_is_unclaimed_is_published_again_once_the_broker_answers(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock
) -> None:
    ids = {put_one(ledger) for _ in range(3)}
    relay.tick()
    claim_one(ledger, min(ids))
    broker.taken.clear()
    clock.advance(1)
    relay.broker_lost()
    assert relay.tick() == 2
    assert set(broker.taken) == ids - {min(ids)}
    assert relay.tick() == 0, "once"


def test_what_was_purged_is_published_again_within_seconds(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock
) -> None:
    id_ = put_one(ledger)
    relay.tick()
    clock.advance(4)
    broker.is_purged = True
    assert relay.tick() == 0, "it may be in somebody's hand"
    clock.advance(6)
    assert relay.tick() == 1
    assert broker.taken == [id_, id_]


def test_what_was_published_long_ago_is_published_again(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock
) -> None:
    id_ = put_one(ledger)
    relay.tick()
    clock.advance(299)
    assert relay.tick() == 0
    clock.advance(80)
    assert relay.tick() == 1
    assert broker.taken == [id_, id_]


def test_invariant_9_the_broker_stays_shallow(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock
) -> None:
    put(ledger, *[a_job(batch_id="b", is_bulk=True) for _ in range(300)])
    assert relay.tick() == WINDOW_FLOOR
    assert relay.tick() == 0
    add_worker(ledger, "w1", clock, slots=50)
    assert relay.tick() == 100 - WINDOW_FLOOR
    for id_ in broker.taken[:20]:
        claim_one(ledger, id_, token=id_)
    assert relay.tick() == 0, "a window that is nearly full can wait"
    for id_ in broker.taken[20:25]:
        claim_one(ledger, id_, token=id_)
    assert relay.tick() == 25
    assert published(ledger) == 100


def test_a_lone_job_for_the_relay_does_not_wait_for_bulk_to_make_room(
    ledger: Ledger, relay: Relay, broker: Broker
) -> None:
    put(ledger, *[a_job(batch_id="b", is_bulk=True) for _ in range(300)])
    relay.tick()
    lone = put_one(ledger)
    relay.tick()
    assert lone in broker.taken


def test_the_jobs_of_a_shut_gate_are_not_relayed_and_one_is_for_its_probe(
    ledger: Ledger, relay: Relay, gatekeeper: Gatekeeper, clock: FakeClock
) -> None:
    put(ledger, a_job(), a_job())
    gatekeeper.shut(FailureKind.UNAUTHORIZED, asked_s=None)
    assert relay.tick() == 0
    clock.advance(1.5)
    assert relay.tick() == 1
    assert relay.tick() == 0
