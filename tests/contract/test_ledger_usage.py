"""Sums of usage by model, day, batch and custom_id, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    claim,
    claim_one,
    put,
    put_one,
    record,
    setback,
    success,
)
from worker.storage.batches import make_batch
from worker.storage.engine import Ledger
from worker.storage.outcomes import Usage
from worker.storage.usage_sums import UsageBy, UsageSum, iterate_usage
from worker.storage.workers import rescue_jobs

DAY_MS = 86_400_000


def sums(ledger: Ledger, by: UsageBy, **only: object) -> list[UsageSum]:
    with ledger.read() as connection:
        return list(iterate_usage(connection, by, **only))  # type: ignore[arg-type]


def answer(ledger: Ledger, *, at_ms: int = NOW, usage: Usage | None = None, **facts: object) -> str:
    """One job that was answered at `at_ms`, with these tokens."""
    id_ = put_one(ledger, **facts)
    tokens = usage or Usage("m", 3, 4, 7, 1, 2)
    record(ledger, success(claim_one(ledger, id_, token=id_), ended_at_ms=at_ms, usage=tokens))
    return id_


def test_an_empty_ledger_has_no_groups(ledger: Ledger) -> None:
    assert [sums(ledger, by) for by in UsageBy] == [[], [], [], []]


def test_models_come_with_their_tokens_the_largest_first(ledger: Ledger) -> None:
    answer(ledger, usage=Usage("small", 1, 2, 3, 0, 0))
    answer(ledger, usage=Usage("large", 10, 20, 30, 5, 15))
    answer(ledger, usage=Usage("large", 10, 20, 30, 5, 15))
    assert sums(ledger, UsageBy.MODEL) == [
        UsageSum("large", None, 2, 2, 20, 40, 60, 10, 30, 0, unpriced=2),
        UsageSum("small", None, 1, 1, 1, 2, 3, 0, 0, 0, unpriced=1),
    ]


def test_an_answer_that_was_not_used_is_paid_for_all_the_same(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    ledger.run(lambda c: rescue_jobs(c, "w1", max_solo_losses=3, now_ms=NOW))
    second = claim_one(ledger, job.id, token="t2", worker="w2")
    record(ledger, success(job, usage=Usage("m", 1, 1, 2)))
    record(ledger, success(second, usage=Usage("m", 2, 3, 5)))
    [one] = sums(ledger, UsageBy.MODEL)
    assert (one.answered, one.used, one.unused, one.total_tokens, one.unused_tokens) == (2, 1, 1, 7, 5)


def test_a_call_without_an_answer_does_not_count(ledger: Ledger) -> None:
    record(ledger, setback(claim_one(ledger, put_one(ledger))))
    assert sums(ledger, UsageBy.MODEL) == []


@pytest.mark.parametrize("by", list(UsageBy))
def test_a_sum_may_be_larger_than_any_one_count(ledger: Ledger, by: UsageBy) -> None:
    largest = 2**31 - 1
    claims = claim(ledger, *[job.id for job in put(ledger, a_job(), a_job(), a_job())])
    usage = Usage("m", largest, largest, largest, largest, largest)
    record(ledger, *[success(job, usage=usage) for job in claims.values()])
    [one] = sums(ledger, by)
    assert one.total_tokens == one.prompt_tokens == one.reasoning_tokens == 3 * largest
    assert all(type(count) is int for count in (one.total_tokens, one.answered, one.used, one.unused_tokens))


def test_days_are_utc_and_in_their_order(ledger: Ledger) -> None:
    midnight = int(datetime(2026, 7, 2, tzinfo=UTC).timestamp() * 1000)
    answer(ledger, at_ms=midnight, usage=Usage("m", 1, 1, 2))
    answer(ledger, at_ms=midnight - 1, usage=Usage("m", 50, 50, 100))
    answer(ledger, at_ms=midnight + DAY_MS - 1, usage=Usage("m", 1, 1, 2))
    days = [(one.key, one.answered, one.total_tokens) for one in sums(ledger, UsageBy.DAY)]
    assert days == [(midnight // DAY_MS - 1, 1, 100), (midnight // DAY_MS, 2, 4)]


def test_batches_come_with_their_labels_and_lone_jobs_as_none(ledger: Ledger) -> None:
    ledger.run(
        lambda c: make_batch(
            c, "b1", kind="run", label="docs", endpoint=ENDPOINT, idempotency_key=None, now_ms=NOW
        )
    )
    answer(ledger, batch_id="b1")
    answer(ledger, batch_id="b1")
    answer(ledger, usage=Usage("m", 1, 1, 2))
    found = [(one.key, one.label, one.answered) for one in sums(ledger, UsageBy.BATCH)]
    assert found == [("b1", "docs", 2), (None, None, 1)]


def test_a_custom_id_is_one_group_over_all_batches(ledger: Ledger) -> None:
    answer(ledger, batch_id="b1", custom_id="doc-1")
    answer(ledger, batch_id="b2", custom_id="doc-1")
    answer(ledger, batch_id="b2", usage=Usage("m", 1, 1, 2))
    found = [(one.key, one.answered, one.total_tokens) for one in sums(ledger, UsageBy.CUSTOM)]
    assert found == [("doc-1", 2, 14), (None, 1, 2)]


@pytest.mark.parametrize("by", list(UsageBy))
def test_only_what_was_asked_for_counts(ledger: Ledger, by: UsageBy) -> None:
    answer(ledger, batch_id="b1", custom_id="x", at_ms=NOW)
    answer(ledger, batch_id="b2", custom_id="x", at_ms=NOW + 10)
    assert sum(one.answered for one in sums(ledger, by)) == 2
    assert sum(one.answered for one in sums(ledger, by, since_ms=NOW + 10)) == 1
    assert sum(one.answered for one in sums(ledger, by, batch_id="b1")) == 1
    assert sums(ledger, by, since_ms=NOW + 1, batch_id="b1") == []
    assert sums(ledger, by, batch_id="nobody") == []


def test_many_groups_come_page_by_page(ledger: Ledger) -> None:
    ids = [job.id for job in put(ledger, *[a_job(custom_id=f"c{i:04d}") for i in range(1_500)])]
    for start in range(0, 1_500, 500):
        record(ledger, *[success(job) for job in claim(ledger, *ids[start : start + 500]).values()])
    with ledger.read() as connection:
        groups = iterate_usage(connection, UsageBy.CUSTOM)
        assert next(groups).key == "c0000"
        assert sum(1 for _ in groups) == 1_499
