from __future__ import annotations

from tests.contract.test_ledger_executor import House, build  # noqa: F401
from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    a_job,
    put,
    record,
    setback,
)


def test_T23_waiting_retries_of_one_batch_starve_the_others(ledger):
    from tests.audit.test_ledgerlevel import relay_of

    clock = FakeClock(1_000_000_000)
    relay, broker = relay_of(ledger, ENDPOINT, clock)
    ids = [
        k.id for k in put(ledger, *[a_job(batch_id="a", is_bulk=True, not_before_ms=1) for _ in range(500)])
    ]
    other = [k.id for k in put(ledger, *[a_job(batch_id="b", is_bulk=True, priority=0) for _ in range(10)])]
    from tests.support.ledger import claim

    ticks = 0
    while not set(other) & set(broker.taken) and ticks < 100:
        before = len(broker.taken)
        relay.tick()
        ticks += 1
        # each of the window is called, fails again (500), and waits for a second
        for n, id_ in enumerate(broker.taken[before:]):
            job = claim(ledger, id_, token=f"t{ticks}", now_ms=clock.now_ms()).get(id_)
            if job:
                record(ledger, setback(job, not_before_ms=clock.now_ms() + 1000, burns=False))
        clock.advance(1.0)
    assert ticks < 10, f"batch b is not served in {ticks} windows ({len(broker.taken)} calls of batch a)"
