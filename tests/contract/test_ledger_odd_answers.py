"""What odd answers come to in the ledger: who fails as what, what was paid, what is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from schemas.failure import Failure, FailureKind
from tests.support.clock import FakeClock
from tests.support.house import House
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    claim_one,
    job_row,
    put,
    put_one,
    record,
    rows,
    setback,
    state,
    success,
)
from tests.support.wire import Asked, Speaker, WireServer, framed
from worker.attempt.report import Verdict
from worker.reports.batchlines import output_line, write_lines
from worker.storage.batch_status import fetch_status
from worker.storage.batches import fetch_batch, make_batch
from worker.storage.due import take_due
from worker.storage.engine import Ledger
from worker.storage.outcomes import Recorded, Usage
from worker.storage.pruning import OfAge, prune
from worker.storage.reading import iterate_batch_outcomes, iterate_outcomes
from worker.storage.usage_sums import UsageBy, iterate_usage
from worker.storage.workers import rescue_jobs

USAGE = {"prompt_tokens": "100", "completion_tokens": 50}
CHOICE = {"index": 0, "message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}
WHOLE = {"model": "m1", "choices": [CHOICE], "usage": USAGE}

Open = Callable[..., House]


@pytest.fixture
def answering(ledger: Ledger, clock: FakeClock, tmp_path: Path) -> Iterator[Open]:
    """A worker's parts around an endpoint that gives these bodies, the last one for ever."""
    opened: list[Any] = []

    def build(*bodies: Any) -> House:
        def answer(speaker: Speaker, asked: Asked) -> bool:
            body = bodies[min(asked.number, len(bodies)) - 1]
            speaker.say(framed(body if isinstance(body, bytes) else json.dumps(body).encode()))
            return True

        server = WireServer(answer)
        house = House(ledger, cast(Any, server), tmp_path / "house", clock)
        opened.extend([house, server])
        return house

    yield build
    for one in opened:
        one.close()


def run(house: House, id_: str) -> str:
    """Executes the job until it ends, and says how."""
    for _ in range(20):
        house.execute(id_)
        if state(house.ledger, id_) != "waiting":
            return state(house.ledger, id_)
        house.clock.advance(
            130
        )  # longer than any backoff, and ten times of it shorter than a gate's patience
        due = partial(take_due, endpoint=house.endpoint, room=9, now_ms=house.clock.now_ms())
        house.ledger.run(due)
    raise AssertionError("the job does not end")


def totals(ledger: Ledger) -> list[tuple[int, int, int, int]]:
    with ledger.read() as connection:
        return [
            (one.answered, one.unused, one.total_tokens, one.unused_tokens)
            for one in iterate_usage(connection, UsageBy.MODEL)
        ]


@pytest.mark.parametrize(
    "bad",
    [
        {
            "choices": [
                CHOICE | {"finish_reason": "error", "error": {"code": 502, "message": "upstream lost"}}
            ]
        },
        {"choices": [CHOICE], "error": {"code": 500, "message": "internal"}},
        {"error": {"code": "overloaded_error"}},
    ],
)
def test_an_error_inside_a_200_is_tried_again(answering: Open, bad: dict[str, Any]) -> None:
    house = answering(bad | {"model": "m1", "usage": USAGE}, WHOLE)
    id_ = house.put()
    assert run(house, id_) == "succeeded"
    assert rows(house.ledger, "results")[0].answer == "whole"
    assert (job_row(house.ledger, id_).attempts, job_row(house.ledger, id_).bad_responses) == (1, 0)
    assert totals(house.ledger) == [(2, 1, 300, 150)]


def test_a_rate_limit_inside_a_200_burns_no_attempt(answering: Open) -> None:
    limit = {"error": {"code": 429, "message": "Rate limit exceeded"}}
    house = answering(*[limit] * 9, WHOLE)
    id_ = house.put()
    assert run(house, id_) == "succeeded"
    assert job_row(house.ledger, id_).attempts == 0
    kinds = [row.outcome for row in rows(house.ledger, "attempts")]
    assert kinds == ["rate_limited"] * 9 + ["succeeded"]


def test_a_failed_job_with_an_error_inside_a_200_has_an_output_line_that_no_reader_takes_for_a_success(
    answering: Open,
) -> None:
    house = answering({"error": {"code": "context_length_exceeded", "message": "too long"}})
    id_ = house.put()
    assert run(house, id_) == "failed"
    [outcome] = iterate_outcomes(house.ledger, [id_])
    line = orjson.loads(output_line(outcome))
    assert line["response"] is None and line["error"]["code"] == "rejected"
    assert "too long" in line["error"]["message"]


def test_tokens_of_an_answer_without_choices_are_counted_as_unused(answering: Open) -> None:
    house = answering({"choices": [], "model": "m1", "usage": USAGE})
    assert run(house, house.put()) == "failed"
    assert totals(house.ledger) == [(4, 4, 600, 600)]


def test_an_event_stream_that_nobody_asked_for_is_used(answering: Open) -> None:
    chunks = [
        {"model": "m1", "choices": [{"index": 0, "delta": {"content": text}}]} for text in ("who", "le")
    ]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE}
    stream = (
        b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in [*chunks, last]) + b"data: [DONE]\n\n"
    )
    house = answering(stream)
    id_ = house.put()
    assert run(house, id_) == "succeeded"
    [result] = rows(house.ledger, "results")
    assert (result.answer, result.finish_reason) == ("whole", "stop")
    [outcome] = iterate_outcomes(house.ledger, [id_])
    body = orjson.loads(output_line(outcome))["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "whole" and body["object"] == "chat.completion"
    assert totals(house.ledger) == [(1, 0, 150, 0)]


def test_every_request_says_that_it_does_not_stream(ledger: Ledger, clock: FakeClock, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    class Listening(WireServer):
        def _note(self, path: str, job: str, body: bytes) -> Asked:
            bodies.append(json.loads(body))
            return super()._note(path, job, body)

    def answer(speaker: Speaker, asked: Asked) -> bool:
        speaker.say(framed(json.dumps(WHOLE).encode()))
        return True

    with Listening(answer) as server:
        house = House(ledger, cast(Any, server), tmp_path / "house", clock)
        assert house.execute(house.put()) is Verdict.SUCCEEDED
        house.close()
    assert bodies[0]["stream"] is False
    assert json.loads(rows(ledger, "requests")[0].body).get("stream") is None  # its hash stays what it was


def test_a_thinking_part_is_kept_apart_from_the_answer(answering: Open) -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "two and two"}], "closed": True},
        {"type": "text", "text": "4"},
    ]
    house = answering({"choices": [CHOICE | {"message": {"content": parts}}]})
    assert run(house, house.put()) == "succeeded"
    [result] = rows(house.ledger, "results")
    assert (result.answer, result.reasoning) == ("4", "two and two")


def test_a_lone_surrogate_in_an_answer_makes_a_line_that_strict_readers_take(answering: Open) -> None:
    body = b'{"choices": [{"message": {"content": "a\\ud800b", "\\udc00": 1}, "finish_reason": "stop"}]}'
    house = answering(body)
    id_ = house.put()
    assert run(house, id_) == "succeeded"
    [outcome] = iterate_outcomes(house.ledger, [id_])
    message = orjson.loads(output_line(outcome))["response"]["body"]["choices"][0]["message"]
    assert message == {"content": "a\ufffdb", "\ufffd": 1}
    assert bytes(rows(house.ledger, "results")[0].raw) == body


def test_usage_of_an_id_that_is_used_again_after_pruning_is_kept(ledger: Ledger) -> None:
    for n in range(3):
        put(ledger, a_job(id="report", idempotency_key="task:report"))
        job = claim_one(ledger, "report", token=f"t{n}")
        if n == 1:  # a failure of which nothing was paid, and a retry
            record(ledger, setback(job, not_before_ms=NOW))
            ledger.run(lambda c: c.exec_driver_sql("UPDATE jobs SET state = 'queued'"))
            job = claim_one(ledger, "report", token=f"t{n}-again")
        assert record(ledger, success(job)) == [Recorded.APPLIED]
        assert len(rows(ledger, "attempts")) == (2 if n == 1 else 1)
        prune(ledger, OfAge(NOW + 10_000), with_usage=False)
    assert [row.number for row in rows(ledger, "usage")] == [1, 3, 4]
    assert totals(ledger) == [(3, 0, 21, 0)]


def test_what_an_answer_of_no_use_cost_is_kept_whoever_brings_it(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger))
    ledger.run(lambda c: rescue_jobs(c, "w1", max_solo_losses=3, now_ms=NOW))
    late = replace(setback(job, kind=FailureKind.BAD_RESPONSE), usage=Usage("m", 3, 4, 7))
    assert record(ledger, late) == record(ledger, late) == [Recorded.CLAIM_LOST]
    assert state(ledger, job.id) == "queued" and totals(ledger) == [(1, 1, 7, 7)]


def test_finish_reasons_out_of_the_ordinary_are_counted(ledger: Ledger, tmp_path: Path) -> None:
    for id_ in ("batch_one", "batch_two"):
        made = {"kind": "run", "label": "", "endpoint": ENDPOINT, "idempotency_key": None, "now_ms": NOW}
        ledger.run(partial(make_batch, batch_id=id_, **made))  # type: ignore[arg-type]
    reasons: list[str | None] = [
        "stop",
        "length",
        "length",
        "content_filter",
        "tool_calls",
        "function_call",
        None,
        "",
        "a\ud800\x1b",
    ]
    jobs = [put_one(ledger, batch_id="batch_one", position=n) for n in range(len(reasons))]
    for reason, id_ in zip(reasons, jobs, strict=True):
        record(ledger, success(claim_one(ledger, id_, token=id_), finish_reason=reason))
    second = claim_one(ledger, put_one(ledger, batch_id="batch_one"), token="w")
    record(ledger, success(second, finish_reason="stop"))
    with ledger.read() as connection:
        one, two = fetch_batch(connection, "batch_one"), fetch_batch(connection, "batch_two")
        assert one is not None and two is not None
        found = fetch_status(connection, one).finish_reasons
        assert found == {"length": 2, "content_filter": 1, "a\ufffd\x1b": 1}
        assert next(iter(found)) == "length"
        assert fetch_status(connection, two).finish_reasons == {}
    with (tmp_path / "out.jsonl").open("wb") as file:
        counts = write_lines(iterate_batch_outcomes(ledger, "batch_one"), file)
    assert counts.finish_reasons == found


def test_a_failure_without_usage_costs_nothing(ledger: Ledger) -> None:
    assert Failure(FailureKind.TIMEOUT, "x").spent is None
    record(ledger, setback(claim_one(ledger, put_one(ledger))))
    assert totals(ledger) == []
