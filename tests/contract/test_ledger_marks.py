"""What waits is not lost: a hint behind calls of minutes is not published again, one that is gone is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.clock import FakeClock
from tests.support.ledger import ENDPOINT, a_job, claim_one, job_row, put, put_one, success
from tests.support.upkeep import Broker
from worker.runtime import WorkerRuntime
from worker.settings import load_settings
from worker.storage.engine import Ledger
from worker.storage.tables import MAX_ROWS
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.store import MemoryGateStore
from worker.upkeep.relay import Relay

MakeRelay = Callable[[Collection[str]], Relay]


@pytest.fixture
def broker(ledger: Ledger) -> Broker:
    return Broker(ledger)


@pytest.fixture
def make_relay(ledger: Ledger, broker: Broker, clock: FakeClock) -> MakeRelay:
    """The relay of a worker that has these jobs' hints in hand."""

    def make(hand: Collection[str]) -> Relay:
        gatekeeper = Gatekeeper(MemoryGateStore(), clock, probe_ttl_s=60.0)
        return Relay(
            ledger,
            broker.publish,
            broker,
            gatekeeper,
            clock,
            endpoint=ENDPOINT,
            republish_after_s=40.0,
            in_hand=lambda: hand,
        )

    return make


def tick_for(clock: FakeClock, seconds: int, *relays: Relay) -> int:
    """How many jobs they published meanwhile, at a tick a second."""
    published = 0
    for _ in range(seconds):
        clock.advance(1)
        published += sum(relay.tick() for relay in relays)
    return published


def test_a_hint_that_waits_in_hand_for_a_slot_is_not_published_again(
    ledger: Ledger, broker: Broker, make_relay: MakeRelay, clock: FakeClock
) -> None:
    """The last jobs of a run whose calls take minutes: nothing lies in the broker, and nothing is lost."""
    ids = {put_one(ledger), put_one(ledger)}
    relay = make_relay(ids)
    assert relay.tick() == 2
    claim_one(ledger, min(ids))
    broker.is_purged = True
    with capture_logs() as logs:
        assert tick_for(clock, 50, relay) == 0
    assert logs == []


def test_a_hint_in_the_hand_of_another_worker_is_not_published_again(
    broker: Broker, ledger: Ledger, make_relay: MakeRelay, clock: FakeClock
) -> None:
    id_ = put_one(ledger)
    theirs, ours = make_relay({id_}), make_relay(())
    assert ours.tick() == 1
    broker.is_purged = True
    assert tick_for(clock, 50, theirs, ours) == 0
    assert tick_for(clock, 7, ours) == 1, "nobody says any more that he has it"


def test_a_hint_that_lies_in_the_broker_behind_long_calls_is_not_published_again(
    ledger: Ledger, broker: Broker, make_relay: MakeRelay, clock: FakeClock
) -> None:
    lies, lost = put_one(ledger), put_one(ledger)
    relay = make_relay(())
    assert relay.tick() == 2
    broker.lying = [lies]
    broker.taken.clear()
    assert tick_for(clock, 38, relay) == 0
    assert tick_for(clock, 45, relay) == 1
    assert broker.taken == [lost]


def test_all_that_lie_in_a_deep_window_are_seen(
    ledger: Ledger, broker: Broker, make_relay: MakeRelay, clock: FakeClock
) -> None:
    count = MAX_ROWS + 1
    broker.lying = [
        job.id for job in put(ledger, *[a_job() for _ in range(count)], published_at_ms=clock.now_ms())
    ]
    clock.advance(21)
    make_relay(()).tick()
    assert {job_row(ledger, id_).published_at_ms for id_ in broker.lying} == {clock.now_ms()}


def test_the_last_hint_of_a_queue_is_not_published_again_the_moment_a_worker_takes_it(
    ledger: Ledger, broker: Broker, make_relay: MakeRelay, clock: FakeClock
) -> None:
    """It lay there for a while, and who has it now has had no time to say so."""
    id_ = put_one(ledger)
    hand: set[str] = set()
    theirs, ours = make_relay(hand), make_relay(())
    assert ours.tick() == 1
    assert tick_for(clock, 20, theirs, ours) == 0
    broker.is_purged = True
    assert tick_for(clock, 2, ours) == 0, "their relay is slow today"
    hand.add(id_)
    assert tick_for(clock, 15, theirs, ours) == 0


def test_a_mark_of_a_job_that_is_claimed_is_not_made_anew(
    ledger: Ledger, make_relay: MakeRelay, clock: FakeClock
) -> None:
    id_ = put_one(ledger)
    relay = make_relay({id_})
    relay.tick()
    claim_one(ledger, id_)
    tick_for(clock, 10, relay)
    assert job_row(ledger, id_).published_at_ms is None


def test_a_worker_that_cannot_keep_answers_leaves_what_it_has_in_hand_to_others(
    sqlite_ledger: Ledger, tmp_path: Path, valkey_path: str
) -> None:
    settings = load_settings(
        home=tmp_path / "only",
        broker_url=f"redis+socket://{valkey_path}",
        base_url="http://127.0.0.1:9/v1",
        api_key="k",
        _env_file=None,
    )
    runtime = WorkerRuntime(settings, sqlite_ledger)
    id_ = put_one(sqlite_ledger)
    runtime._reserved.add("tag", job_id=id_, is_bulk=False)
    assert list(runtime._hinted_jobs()) == [id_]
    settings.spool_folder.write_text("where its folder should be")
    assert not runtime._spool.keep(success(claim_one(sqlite_ledger, id_)))
    assert list(runtime._hinted_jobs()) == []
