"""What a limiter reports of the calls of its worker, and when."""

from __future__ import annotations

import pytest

from tests.support.clock import FakeClock
from tests.unit.test_limiter import Job, Ledger, Make, clock, ledger, make, store
from worker.throttle.gatekeeper import Permit
from worker.throttle.limits import MemoryLimitStore

__all__ = ["clock", "ledger", "make", "store"]  # fixtures


def test_the_calls_in_flight_are_reported_without_the_moments_between_two_calls(
    make: Make, store: MemoryLimitStore
) -> None:
    worker = make()
    worker.tick()
    worker.take(12)
    worker.tick()
    worker.end(5)
    worker.tick()
    assert store._state is not None
    assert store._state.flow.open_ms == 12 * 100, "of a window that began with the jobs"


def test_a_call_whose_thread_begins_late_is_of_the_limit_that_gave_it_its_slot(
    make: Make, ledger: Ledger
) -> None:
    """Else a refusal of the higher limit would cut the lower one, too."""
    worker = make()
    worker.tick()
    worker.take(15)
    worker.slots.add(Job())
    worker.slots.add_claimed(worker.slots.take_claimable()[0])
    assert worker.slots.take_slots() == 1
    worker.end(1, refused=True)
    worker.tick(0.01)
    assert ledger.values == [16, 12]
    job, permit = worker.slots.take_started(), Permit()
    assert job is not None
    worker.meter.admit(permit, epoch=job.epoch)
    worker.meter.note_failure(permit, is_refusal=True)
    worker.tick(0.01)
    assert ledger.values == [16, 12]
    worker.end(14)
    worker.take(12)
    assert {one.epoch for one in worker.calls} == {worker.meter.epoch}


def test_the_first_job_after_an_idle_time_wakes_the_limiter_and_the_time_before_it_does_not_count(
    make: Make, ledger: Ledger, clock: FakeClock
) -> None:
    worker = make()
    for _ in range(5):
        assert worker.tick(1.0) == 1.0
    assert not worker.slots.lacks
    epoch = worker.meter.epoch
    worker.take(1)
    worker.tick(0.01)
    assert worker.meter.epoch == epoch, "one job fills no limit"
    worker.end()
    worker.tick(1.0)
    worker.take(100)
    assert worker.slots.lacks, "the limiter is asked at once"
    worker.tick(0.01)
    assert worker.limiter._limit is not None
    assert worker.limiter._limit.since_ms == clock.now_ms()
    worker.tick()
    worker.tick()
    worker.end()
    worker.tick()
    assert ledger.values == [16, 32]


def test_while_a_limit_is_tried_the_exchanges_are_frequent(make: Make) -> None:
    worker = make()
    worker.take(30)
    worker.tick()
    worker.tick()
    assert worker.tick() == 0.1, "it is being tried"
    worker.end()
    worker.tick()
    assert worker.tick() == 0.25, "there are too few jobs to try anything"


def test_no_call_begins_between_a_refusal_and_the_lower_limit_that_follows(make: Make) -> None:
    worker = make()
    worker.tick()
    worker.take(100)
    worker.end(1, refused=True)
    begun: list[int] = []
    worker.limiter._advance = lambda: begun.append(worker.slots.bulk_limit)
    worker.tick()
    assert worker.slots.bulk_limit == 12
    assert 16 not in begun


def test_after_a_refusal_that_is_no_news_calls_begin_again_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make()
    worker.tick()
    worker.take(100)
    worker.end(1, refused=True)
    monkeypatch.setattr("worker.throttle.limiter.cut", lambda limit, *_, **__: limit)
    monkeypatch.setattr("worker.throttle.limiter.step", lambda limit, *_, **__: limit)
    worker.tick()
    assert (worker.slots.bulk_limit, len(worker.calls)) == (16, 16)
