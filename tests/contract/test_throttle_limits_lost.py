"""Both stores of limits where something is lost or odd: what was found, the clock, what somebody set, other workers."""

from __future__ import annotations

from tests.contract.test_throttle_limits import Make, Worker, found, make
from worker.throttle.limits import Change, Fixed

__all__ = ["make"]


def test_a_worker_that_seeks_the_limit_has_no_more_slots_than_before_until_one_is_found(make: Make) -> None:
    worker = Worker("a", make(), most=256, share=16)
    worker.exchange()
    assert worker.share == 16
    worker.fixed = Fixed(in_flight=60, version_ms=1)
    worker.exchange()
    assert worker.share == 16
    worker.exchange(Change(found(40)))
    assert worker.share == 40
