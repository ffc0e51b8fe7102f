"""Batches of unlike documents and weights, worked on by real workers at the same time: who gets how many tokens."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest
from sqlalchemy import select

from tests.support.audit import states
from tests.support.processes import Shop, wait_until
from worker.storage.engine import Ledger
from worker.storage.tables import jobs, usage

LONG, SHORT = 600, 60  # words of a document


def submit(shop: Shop, name: str, count: int, *, words: int, weight: str) -> str:
    """A batch of so many documents, all of this length."""
    text = "word " * words
    with (shop.folder / f"{name}.jsonl").open("w") as file:
        for i in range(count):
            body = {
                "model": "DeepSeek-V3.1",
                "max_tokens": 20,
                "messages": [{"role": "user", "content": f"{i} {text}"}],
            }
            line = {"custom_id": f"{name}{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    done = shop.antrean("submit", f"{name}.jsonl", "--json", "--weight", weight)
    assert done.code == 0, done.err
    return str(done.json["batch_id"])


def count_succeeded(ledger: Ledger) -> int:
    return states(ledger)["succeeded"]


def sum_tokens(ledger: Ledger, begin_ms: int, end_ms: int) -> Counter[str]:
    """What the answers of each batch took within this time."""
    sums = Counter[str]()
    with ledger.read() as connection:
        within = usage.c.created_at_ms.between(begin_ms, end_ms)
        for batch_id, tokens in connection.execute(
            select(usage.c.batch_id, usage.c.total_tokens).where(within)
        ):
            sums[batch_id] += tokens
    return sums


def find_waiting(ledger: Ledger) -> set[str]:
    """The batches that have jobs to send."""
    with ledger.read() as connection:
        found = select(jobs.c.batch_id).where(jobs.c.state == "queued", jobs.c.published_at_ms.is_(None))
        return set(connection.execute(found.distinct()).scalars())


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.both_databases
@pytest.mark.simulator("--latency", "0.1")
def test_batches_of_unlike_documents_share_the_tokens_by_weight_also_one_that_comes_later(
    plant: Shop, plant_ledger: Ledger
) -> None:
    long = submit(plant, "long", 700, words=LONG, weight="1")
    short = submit(plant, "short", 5000, words=SHORT, weight="2")
    for _ in range(2):
        plant.worker(concurrency=8, lone_slots=0)
    # By then each worker has seen what the documents of both take.
    wait_until(lambda: count_succeeded(plant_ledger) >= 200, within_s=60, what="answers tell what jobs take")
    begin_ms = now_ms()
    wait_until(lambda: count_succeeded(plant_ledger) >= 900, within_s=60, what="a window is over")
    tokens = sum_tokens(plant_ledger, begin_ms, now_ms())
    assert 1.7 <= tokens[short] / tokens[long] <= 2.3, tokens
    assert find_waiting(plant_ledger) == {long, short}

    # A batch that comes later has its share at once, and no more, and the weight of another one changes.
    later = submit(plant, "later", 400, words=LONG, weight="1")
    assert plant.antrean("weight", short, "1").code == 0
    seen = count_succeeded(plant_ledger)
    wait_until(lambda: count_succeeded(plant_ledger) >= seen + 200, within_s=60, what="workers follow")
    begin_ms, seen = now_ms(), count_succeeded(plant_ledger)
    wait_until(lambda: count_succeeded(plant_ledger) >= seen + 600, within_s=60, what="a window is over")
    tokens = sum_tokens(plant_ledger, begin_ms, now_ms())
    assert find_waiting(plant_ledger) == {long, short, later}
    mean = sum(tokens.values()) / 3
    assert all(0.8 * mean <= tokens[batch] <= 1.2 * mean for batch in (long, short, later)), tokens
