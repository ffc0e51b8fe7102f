"""A job's whole story, as the ledger tells it, on both databases."""

from __future__ import annotations

from functools import partial

import pytest

from schemas.failure import FailureKind
from tests.contract.test_ledger_wants import a_batch, want
from tests.support.ledger import ENDPOINT, NOW, claim_one, give_back, put_one, record, setback, success
from worker.storage.batches import hold_batch, make_batch
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_jobs, retry_jobs
from worker.storage.story import Story, fetch_story
from worker.storage.workers import register_worker, rescue_jobs


def tell(ledger: Ledger, id_: str, **how: bool) -> Story:
    with ledger.read() as connection:
        story = fetch_story(connection, id_, **how)
    assert story is not None
    return story


def register(ledger: Ledger, worker: str = "w1") -> None:
    ledger.run(
        lambda c: register_worker(
            c, worker, endpoint=ENDPOINT, hostname="host", pid=7, slots=1, lease_ms=1, now_ms=NOW
        )
    )


def test_a_job_that_is_not_there_has_no_story(ledger: Ledger) -> None:
    with ledger.read() as connection:
        assert fetch_story(connection, "nobody") is None
        assert fetch_story(connection, "x" * 5_000, with_content=True) is None


def test_a_new_job_tells_what_it_is(ledger: Ledger) -> None:
    ledger.run(
        lambda c: make_batch(
            c, "b1", kind="run", label="docs", endpoint=ENDPOINT, idempotency_key=None, now_ms=NOW
        )
    )
    id_ = put_one(
        ledger,
        batch_id="b1",
        position=3,
        custom_id="c",
        source_key="a/b.txt",
        idempotency_key="k",
        is_bulk=True,
    )
    story = tell(ledger, id_)
    assert (story.state, story.batch_id, story.batch_label, story.position) == ("queued", "b1", "docs", 3)
    assert (story.custom_id, story.source_key, story.idempotency_key) == ("c", "a/b.txt", "k")
    assert (story.model, story.endpoint, story.request_hash, story.created_at_ms) == ("m", ENDPOINT, "h", NOW)
    assert (story.attempts, story.result, story.content) == ((), None, None)


def test_a_lone_job_is_of_no_batch(ledger: Ledger) -> None:
    story = tell(ledger, put_one(ledger))
    assert (story.batch_id, story.batch_label) == (None, None)


def test_each_attempt_is_told_with_the_wait_before_it(ledger: Ledger) -> None:
    register(ledger)
    id_ = put_one(ledger)
    first = claim_one(ledger, id_)
    why = {"kind": FailureKind.RATE_LIMITED, "http_status": 429, "request_id": "r1", "message": "slow down"}
    record(ledger, setback(first, ended_at_ms=NOW + 10, **why))  # type: ignore[arg-type]
    ledger.run(lambda c: retry_jobs(c, [id_], now_ms=NOW + 20))
    second = claim_one(ledger, id_, token="t2", worker="w2", now_ms=NOW + 110)
    record(ledger, success(second, worker="w2", ended_at_ms=NOW + 200, request_id="r2"))
    story = tell(ledger, id_)
    one, two = story.attempts
    assert (one.number, one.generation, one.outcome, one.worker_id, one.host) == (
        1,
        1,
        "rate_limited",
        "w1",
        "host:7",
    )
    assert (one.http_status, one.request_id, one.message, one.latency_ms) == (429, "r1", "slow down", 5)
    assert (one.started_at_ms, one.ended_at_ms, one.waited_ms, one.prompt_tokens) == (
        NOW,
        NOW + 10,
        None,
        None,
    )
    assert (two.number, two.generation, two.outcome, two.host, two.waited_ms) == (
        2,
        2,
        "succeeded",
        None,
        100,
    )
    assert (two.prompt_tokens, two.completion_tokens, two.is_used) == (3, 4, True)
    assert (story.state, story.generation, story.ended_at_ms) == ("succeeded", 2, NOW + 200)


def test_a_waiting_job_tells_why_and_until_when(ledger: Ledger) -> None:
    id_ = put_one(ledger, max_attempts=9)
    record(ledger, setback(claim_one(ledger, id_), not_before_ms=NOW + 500, message="later"))
    story = tell(ledger, id_)
    assert (story.state, story.not_before_ms, story.burnt, story.max_attempts) == ("waiting", NOW + 500, 1, 9)
    assert (story.failure_kind, story.http_status, story.failure_message) == ("server_error", 500, "later")


def test_a_running_job_tells_who_holds_it(ledger: Ledger) -> None:
    register(ledger)
    job = claim_one(ledger, put_one(ledger), now_ms=NOW + 5)
    ledger.run(lambda c: cancel_jobs(c, [job.id], now_ms=NOW))
    story = tell(ledger, job.id)
    assert (story.state, story.worker_id, story.worker_host, story.claims) == ("running", "w1", "host:7", 1)
    assert (story.claimed_at_ms, story.is_cancel_requested, story.attempts) == (NOW + 5, True, ())


def test_the_result_comes_with_what_it_cost(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    record(ledger, success(job, finish_reason="length", is_reasoning_unclosed=True))
    result = tell(ledger, job.id).result
    assert result is not None
    assert (result.number, result.http_status, result.finish_reason) == (1, 200, "length")
    assert result.is_reasoning_unclosed is True
    assert (result.prompt_tokens, result.completion_tokens, result.total_tokens) == (3, 4, 7)
    assert (result.model, result.cached_tokens, result.reasoning_tokens) == ("m", 1, 2)


def test_attempts_that_overlap_have_no_wait_between_them(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    ledger.run(lambda c: rescue_jobs(c, "w1", max_solo_losses=3, now_ms=NOW + 50))
    second = claim_one(ledger, job.id, token="t2", worker="w2", now_ms=NOW + 60)
    record(ledger, success(job, ended_at_ms=NOW + 90))
    record(ledger, success(second, worker="w2", ended_at_ms=NOW + 95))
    one, two = tell(ledger, job.id).attempts
    assert (one.outcome, one.is_used, two.outcome, two.is_used) == ("succeeded", True, "unused", False)
    assert two.waited_ms is None


def test_a_claim_that_was_given_back_is_told_too(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    record(ledger, give_back(job))
    story = tell(ledger, job.id)
    assert [(one.outcome, one.latency_ms) for one in story.attempts] == [("released", None)]
    assert (story.state, story.burnt) == ("queued", 0)


def test_texts_are_told_only_to_who_asks(ledger: Ledger) -> None:
    good = claim_one(ledger, put_one(ledger, body='{"model":"secret prompt"}'))
    bad = claim_one(ledger, put_one(ledger), token="t2")
    record(
        ledger, success(good, answer="secret answer", reasoning="secret thought"), setback(bad, body=b"why")
    )
    assert "secret" not in repr(tell(ledger, good.id))
    content = tell(ledger, good.id, with_content=True).content
    assert content is not None
    assert (content.request, content.answer, content.reasoning, content.error) == (
        '{"model":"secret prompt"}',
        "secret answer",
        "secret thought",
        None,
    )
    failed = tell(ledger, bad.id, with_content=True).content
    assert failed is not None
    assert (failed.answer, failed.error, failed.user_metadata) == (None, b"why", None)


@pytest.mark.parametrize("id_", ["-x", "'; DROP TABLE jobs; --", "a b\tc", "é" * 300, "%_"])
def test_an_odd_id_is_an_id(ledger: Ledger, id_: str) -> None:
    put_one(ledger, id=id_)
    assert tell(ledger, id_).id == id_


def test_a_job_is_held_while_it_is_to_be_done_and_its_run_is_stopped(ledger: Ledger) -> None:
    first, second = want(ledger, a_batch(ledger, "b"), "x", "y")
    assert not tell(ledger, first.id).is_held
    claim_one(ledger, second.id)
    ledger.run(partial(hold_batch, batch_id="b", now_ms=NOW))
    assert tell(ledger, first.id).is_held
    assert not tell(ledger, second.id).is_held, "its call goes on"
    assert not tell(ledger, put_one(ledger)).is_held, "a lone job is nobody's to hold"
