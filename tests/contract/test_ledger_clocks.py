"""No clock of another machine decides anything, nor does one that jumps: on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    a_job,
    claim_one,
    job_row,
    put,
    put_one,
    record,
    setback,
    state,
    success,
)
from tests.support.upkeep import Broker, add_worker
from worker.operations.tracking import Progress, Tracker
from worker.storage.due import unmark_published_before
from worker.storage.engine import Ledger
from worker.storage.moves import expire_jobs
from worker.storage.prune_survey import survey
from worker.storage.pruning import OfAge, prune
from worker.storage.writer import GroupWriter
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.store import MemoryGateStore
from worker.upkeep.heartbeat import Heartbeat
from worker.upkeep.presence import Presence
from worker.upkeep.relay import Relay
from worker.upkeep.spool import SpoolFile

HOUR_S = 3600.0
HOUR_MS = 3_600_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_000_000_000_000)


@pytest.fixture
def broker(ledger: Ledger) -> Broker:
    return Broker(ledger)


@pytest.fixture
def relay(ledger: Ledger, broker: Broker, clock: FakeClock) -> Relay:
    gatekeeper = Gatekeeper(MemoryGateStore(), clock, probe_ttl_s=60.0)
    return Relay(
        ledger, broker.publish, broker, gatekeeper, clock, endpoint=ENDPOINT, republish_after_s=120.0
    )


def seconds_until_published(relay: Relay, broker: Broker, clock: FakeClock, *, at_most: int) -> int:
    """How many seconds of ticks it takes until anything is published."""
    broker.taken.clear()
    for second in range(at_most):
        relay.tick()
        if broker.taken:
            return second
        clock.advance(1)
    raise AssertionError(f"nothing is published within {at_most} s")


@pytest.mark.parametrize("jump_s", [-7 * HOUR_S, 7 * HOUR_S])
@pytest.mark.parametrize("loss", ["forgot", "purged", "silent"])
def test_what_the_broker_lost_is_published_again_though_the_clock_jumped(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock, loss: str, jump_s: float
) -> None:
    put_one(ledger)
    relay.tick()
    clock.jump(jump_s)
    broker.has_mark = loss != "forgot"
    broker.is_purged = loss == "purged"
    within_s = {"forgot": 1, "purged": 10, "silent": 300}[loss]
    assert seconds_until_published(relay, broker, clock, at_most=within_s + 1) <= within_s


@pytest.mark.parametrize("ahead_s", [3, 45, 7 * HOUR_S])
def test_a_mark_of_a_clock_ahead_is_no_excuse_for_a_message_that_is_gone(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock, ahead_s: float
) -> None:
    put(ledger, a_job(), published_at_ms=clock.now_ms() + round(ahead_s * 1000))
    broker.is_purged = True
    assert seconds_until_published(relay, broker, clock, at_most=60) <= 11


def test_marks_a_little_ahead_are_left_alone_as_others_of_their_age(ledger: Ledger, clock: FakeClock) -> None:
    now_ms = clock.now_ms()
    put(ledger, a_job(), published_at_ms=now_ms + 4_000)

    def unmark(after_ms: int) -> int:
        return ledger.run(
            lambda c: unmark_published_before(c, ENDPOINT, now_ms - 5_000, after_ms=now_ms + after_ms)
        )

    assert unmark(5_000) == 0
    assert unmark(3_000) == 1


def a_retry(ledger: Ledger, clock: FakeClock, *, wait_s: float, ahead_s: float = 0.0) -> str:
    """A job that was refused by a worker whose clock is ahead by `ahead_s`, and is to wait `wait_s`."""
    ended_ms = clock.now_ms() + round(ahead_s * 1000)
    id_ = put_one(ledger, batch_id="b", is_bulk=True)
    job = claim_one(ledger, id_, token=id_)
    record(ledger, setback(job, not_before_ms=ended_ms + round(wait_s * 1000), ended_at_ms=ended_ms))
    return id_


@pytest.mark.parametrize("wait_s", [0.5, 60.0])
@pytest.mark.parametrize("ahead_s", [600.0, 24 * HOUR_S])
def test_a_retry_that_a_clock_ahead_wrote_waits_as_long_as_was_meant(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock, ahead_s: float, wait_s: float
) -> None:
    a_retry(ledger, clock, wait_s=wait_s, ahead_s=ahead_s)
    took_s = seconds_until_published(relay, broker, clock, at_most=80)
    assert wait_s <= took_s + 1 and took_s <= wait_s + 6


def test_a_retry_that_a_clock_ahead_wrote_is_measured_anew_once(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock
) -> None:
    """The endpoint asked for more than the longest backoff: it is not called sooner, however often one looks."""
    a_retry(ledger, clock, wait_s=600.0, ahead_s=24 * HOUR_S)
    assert 599 <= seconds_until_published(relay, broker, clock, at_most=620) <= 606


def test_a_wait_that_nobody_can_have_meant_is_cut_to_the_longest_backoff(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock
) -> None:
    a_retry(ledger, clock, wait_s=24 * HOUR_S)
    assert 110 <= seconds_until_published(relay, broker, clock, at_most=200) <= 130


def test_retries_left_from_before_the_clock_was_set_back_go_on(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock
) -> None:
    ids = {a_retry(ledger, clock, wait_s=30) for _ in range(20)}
    clock.jump(-9 * HOUR_S)
    assert seconds_until_published(relay, broker, clock, at_most=60) <= 36
    assert set(broker.taken) == ids


def test_a_long_wait_that_the_endpoint_asked_for_is_kept(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock
) -> None:
    id_ = a_retry(ledger, clock, wait_s=HOUR_S)
    due_ms = job_row(ledger, id_).not_before_ms
    for _ in range(30):
        relay.tick()
        clock.advance(10)
    assert (broker.taken, job_row(ledger, id_).not_before_ms) == ([], due_ms)


def test_a_time_that_a_producer_asked_for_is_kept_be_it_weeks_ahead(
    ledger: Ledger, relay: Relay, broker: Broker, clock: FakeClock
) -> None:
    due_ms = clock.now_ms() + 21 * 24 * HOUR_MS
    id_ = put_one(ledger, not_before_ms=due_ms)
    for _ in range(5):
        relay.tick()
        clock.advance(HOUR_S)
    assert (broker.taken, job_row(ledger, id_).not_before_ms) == ([], due_ms)


@pytest.fixture
def heartbeat(ledger: Ledger, clock: FakeClock, tmp_path: Path) -> Iterator[Heartbeat]:
    writer = GroupWriter(ledger, worker_id="me", endpoint=ENDPOINT, clock=clock, window_s=0.0)
    writer.start()
    yield Heartbeat(
        ledger,
        writer,
        SpoolFile(tmp_path / "spool", "me"),
        Presence(tmp_path / "workers", "me"),
        clock,
        endpoint=ENDPOINT,
        slots=lambda: 4,
        lease_s=2.0,
        beat_s=0.3,
        spool_folder=tmp_path / "spool",
        max_solo_losses=3,
    )
    assert writer.stop(10)


def watch_for(heartbeat: Heartbeat, clock: FakeClock, seconds: float) -> None:
    for _ in range(round(seconds / 0.5) + 1):
        heartbeat.beat()
        clock.advance(0.5)


@pytest.mark.parametrize("jump_s", [-9 * HOUR_S, 9 * HOUR_S])
def test_a_jump_of_the_clock_takes_no_worker_for_dead(
    ledger: Ledger, heartbeat: Heartbeat, clock: FakeClock, jump_s: float
) -> None:
    add_worker(ledger, "other", clock)
    job = claim_one(ledger, put_one(ledger), worker="other")
    heartbeat.beat()
    clock.jump(jump_s)
    watch_for(heartbeat, clock, 1)
    assert state(ledger, job.id) == "running"


def test_the_window_of_a_dead_worker_is_published_again_whatever_its_clock_said(
    ledger: Ledger, heartbeat: Heartbeat, clock: FakeClock
) -> None:
    add_worker(ledger, "dead", clock)
    [known] = put(ledger, a_job(), published_at_ms=clock.now_ms() + HOUR_MS)
    watch_for(heartbeat, clock, 3)
    assert job_row(ledger, known.id).published_at_ms is None


def test_what_is_rescued_is_published_again_for_its_own_endpoint(
    ledger: Ledger, heartbeat: Heartbeat, clock: FakeClock
) -> None:
    from worker.storage.workers import register_worker  # local: a worker of another endpoint, only here

    elsewhere = "https://elsewhere.test"
    ledger.run(
        lambda c: register_worker(
            c,
            "dead",
            endpoint=elsewhere,
            hostname="h",
            pid=1,
            slots=4,
            lease_ms=2000,
            now_ms=clock.now_ms(),
        )
    )
    theirs, ours = put(
        ledger, a_job(endpoint=elsewhere), a_job(), published_at_ms=clock.now_ms() - 1, now_ms=clock.now_ms()
    )
    watch_for(heartbeat, clock, 3)
    assert job_row(ledger, theirs.id).published_at_ms is None
    assert job_row(ledger, ours.id).published_at_ms is not None, "its messages are where they were"


def test_a_worker_whose_clock_is_ahead_of_the_servers_expires_nothing_early(ledger: Ledger) -> None:
    if not ledger.is_postgresql:
        pytest.skip("a SQLite file has one machine, and its clock")
    from worker.clock import SystemClock  # local: the server's clock is the real one

    now_ms = SystemClock().now_ms()
    early, late = put(ledger, a_job(expires_at_ms=now_ms + HOUR_MS), a_job(expires_at_ms=now_ms - HOUR_MS))
    assert ledger.run(lambda c: expire_jobs(c, now_ms=now_ms + 7 * HOUR_MS)) == 1
    assert (state(ledger, early.id), state(ledger, late.id)) == ("queued", "expired")
    assert ledger.run(lambda c: expire_jobs(c, now_ms=now_ms - 7 * HOUR_MS)) == 0


def test_nothing_is_pruned_because_a_clock_was_behind(ledger: Ledger, clock: FakeClock) -> None:
    id_ = put(ledger, a_job(), now_ms=clock.now_ms())[0].id
    record(ledger, success(claim_one(ledger, id_), ended_at_ms=60_000))  # an hour into 1970
    before_ms = clock.now_ms() - HOUR_MS
    assert survey(ledger, OfAge(before_ms)).total.total == 0
    assert prune(ledger, OfAge(before_ms), with_usage=False).removed == 0
    assert prune(ledger, OfAge(clock.now_ms() + 1), with_usage=False).removed == 1


def test_who_follows_jobs_is_not_carried_off_by_one_that_ended_in_the_future(ledger: Ledger) -> None:
    from worker.clock import SystemClock  # local: the tracker follows this machine's clock

    now_ms = SystemClock().now_ms()
    ahead, right = put_one(ledger), put_one(ledger)
    tracker = Tracker(ledger, [ahead, right], Progress(total=2))
    tracker.refresh()
    record(ledger, success(claim_one(ledger, ahead, token="a"), ended_at_ms=now_ms + 7 * HOUR_MS))
    assert tracker.refresh().succeeded == 1
    record(ledger, success(claim_one(ledger, right, token="b"), ended_at_ms=now_ms))
    assert tracker.refresh().succeeded == 2
