"""Several workers under a limit that is hardly more than their number: what does not divide is handed round."""

from __future__ import annotations

import pytest

from tests.support.clock import FakeClock
from tests.support.slots import Job
from tests.unit.test_limiter import Ledger, Worker
from worker.policy.concurrency import Limit, Phase
from worker.throttle.gatekeeper import Permit
from worker.throttle.limiter_needs import Known
from worker.throttle.limits import MemoryLimitStore

STEP_S = 0.05


class Busy(Worker):
    """A worker with more jobs than slots, whose calls take `call_s`, and whose limiter ticks when it is time."""

    def __init__(self, name: str, store: MemoryLimitStore, ledger: Ledger, clock: FakeClock) -> None:
        super().__init__(name, store, ledger, clock)
        self.next_s = 0.0
        self.in_call: list[tuple[float, Permit]] = []

    def live(self, call_s: float) -> None:
        now_s = self.clock.monotonic_s()
        self.take(max(0, 50 - self.slots.demand))
        if now_s >= self.next_s:
            self.next_s = now_s + self.limiter.tick()
        self.begin(now_s + call_s)
        for _, permit in [one for one in self.in_call if one[0] <= now_s]:
            self.meter.note_answer(permit, latency_s=call_s, tokens=100, tokens_out=50)
            self.slots.leave(Job())
            self.slots.end()
        self.in_call = [one for one in self.in_call if one[0] > now_s]
        self.advance()
        self.begin(now_s + call_s)

    def begin(self, end_s: float) -> None:
        self.in_call += [(end_s, permit) for permit in self.calls]
        self.calls.clear()


@pytest.mark.parametrize("call_s", [0.7, 1.0, 3.0])
@pytest.mark.parametrize(("count", "value"), [(2, 1), (2, 3), (3, 1), (3, 2)])
def test_a_small_limit_of_several_workers_grows_where_the_endpoint_could_do_more(
    clock: FakeClock, count: int, value: int, call_s: float
) -> None:
    now_ms, store = clock.now_ms(), MemoryLimitStore(clock.now_ms)
    found = Limit(value, 5, Phase.HOLDING, now_ms, "test", good=value, round_ms=1000, tried_ms=now_ms)
    ledger = Ledger(Known(found=found))
    workers = [Busy(name, store, ledger, clock) for name in "abc"[:count]]
    for worker in workers:
        worker.limiter.tick()
    for _ in range(round(120 / STEP_S)):
        clock.advance(STEP_S)
        for worker in workers:
            worker.live(call_s)
        if ledger.values and ledger.values[-1] >= 12:
            return
    pytest.fail(f"the limit went by {ledger.values}")
