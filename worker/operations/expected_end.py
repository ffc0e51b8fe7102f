"""When a batch is likely to end, and whether its deadline can be met. Changes nothing."""

from __future__ import annotations

from worker.clock import SystemClock
from worker.policy.expected_end import Expected, expect_end
from worker.policy.fairness import USUAL_WEIGHT
from worker.storage.batches import Batch, fetch_held
from worker.storage.engine import Ledger
from worker.storage.flow import count_open_by_batch, fetch_flow
from worker.storage.weights import fetch_weights

_WINDOW_MS = 300_000


def expect_end_of(ledger: Ledger, batch: Batch) -> Expected | None:
    """The batch's likely end, at the rate of its endpoint's last five minutes.

    None where nothing of it waits for a call, where it is held or waits at its budget, or too little was answered in
    that time.
    """
    with ledger.read() as connection:
        now_ms = SystemClock().now_ms()
        flow = fetch_flow(connection, batch.endpoint, since_ms=now_ms - _WINDOW_MS)
        if not flow.answers:
            return None
        counts = count_open_by_batch(connection, batch.endpoint)
        held = fetch_held(connection, batch.endpoint)
        weights = fetch_weights(connection, counts)
    own = 0 if batch.id in held else counts.pop(batch.id, 0)
    others = [
        (count, weights.get(batch_id, USUAL_WEIGHT))
        for batch_id, count in counts.items()
        if batch_id not in held
    ]
    weight = weights.get(batch.id, USUAL_WEIGHT)
    return expect_end(flow, own=own, others=others, now_ms=now_ms, weight=weight) if own else None
