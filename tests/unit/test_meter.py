"""What a worker's calls came to: counted under the limit that admitted them, and read once."""

from __future__ import annotations

from dataclasses import asdict, replace
from time import perf_counter

import orjson
import pytest

from worker.policy.concurrency import Limit, Phase
from worker.policy.flow import NOTHING, one_answer
from worker.throttle.gatekeeper import Permit
from worker.throttle.meter import Meter

LIMIT = Limit(16, 5, Phase.STARTING, 0, "test", steady_epoch=4, cut_epoch=3)


def admitted(meter: Meter) -> Permit:
    permit = Permit()
    meter.admit(permit)
    return permit


def test_answers_count_for_the_limit_under_which_their_calls_were_admitted() -> None:
    meter = Meter()
    early = admitted(meter)
    meter.follow(LIMIT)
    call = admitted(meter)
    assert (early.epoch, call.epoch) == (0, 5)
    meter.note_answer(call, latency_s=0.5, tokens=30, tokens_out=20)
    meter.note_answer(early, latency_s=9.0, tokens=30, tokens_out=20)
    counted = one_answer(call_ms=500, tokens=30, tokens_out=20)
    assert meter.read().flow == counted + replace(NOTHING, ended=1)
    assert meter.read().flow == NOTHING, "each is read once"


def test_what_was_counted_for_another_limit_is_forgotten() -> None:
    meter = Meter()
    meter.follow(LIMIT)
    meter.note_answer(admitted(meter), latency_s=0.5, tokens=3, tokens_out=2)
    meter.note_failure(admitted(meter), is_refusal=True)
    meter.follow(LIMIT)
    assert meter.read().flow.answers == 1
    meter.note_answer(admitted(meter), latency_s=0.5, tokens=3, tokens_out=2)
    meter.note_failure(admitted(meter), is_refusal=True)
    meter.follow(replace(LIMIT, epoch=6))
    reading = meter.read()
    assert (reading.flow, reading.refused_epoch) == (NOTHING, None)


@pytest.mark.parametrize(("epoch", "is_news"), [(2, False), (3, True), (5, True)])
def test_a_refusal_is_told_at_once_unless_its_call_was_admitted_before_the_last_cut(
    epoch: int, is_news: bool
) -> None:
    told: list[str] = []
    meter = Meter(on_refusal=lambda: told.append("refused"))
    meter.follow(LIMIT)
    meter.note_failure(Permit(epoch=epoch), is_refusal=True)
    meter.note_failure(Permit(epoch=5), is_refusal=False)
    reading = meter.read()
    assert (reading.flow.refusals, reading.refused_epoch, told) == (
        (1, epoch, ["refused"]) if is_news else (0, None, [])
    )


def test_what_was_reserved_and_not_used_is_given_back_also_of_calls_that_fail() -> None:
    meter = Meter()
    assert meter.expected_tokens() == 1000
    meter.reserved_tokens = 500
    first, second, third = (admitted(meter) for _ in range(3))
    meter.note_answer(first, latency_s=0.1, tokens=600, tokens_out=20)
    meter.note_failure(second, is_refusal=True)
    meter.note_failure(third, is_refusal=False, tokens=200)
    assert meter.read().back_tokens == -100 + 500 + 300
    assert meter.read().back_tokens == 0


def test_what_a_call_may_take_is_what_nearly_all_of_the_latest_took() -> None:
    meter = Meter()
    for tokens in [10_000, *range(1, 201)]:
        meter.note_answer(Permit(), latency_s=0.1, tokens=tokens, tokens_out=1)
    assert meter.expected_tokens() == 190


def test_counting_costs_a_call_next_to_nothing() -> None:
    meter = Meter()
    meter.follow(LIMIT)
    best_s = float("inf")
    for _ in range(5):
        began_s = perf_counter()
        for _ in range(1000):
            permit = Permit()
            meter.admit(permit)
            meter.note_answer(permit, latency_s=0.5, tokens=30, tokens_out=20)
        best_s = min(best_s, (perf_counter() - began_s) / 1000)
    assert best_s < 50e-6, "0.05 ms"


def test_nonsense_of_an_endpoint_about_its_tokens_can_be_told_to_the_store() -> None:
    meter = Meter()
    meter.follow(LIMIT)
    for _ in range(1000):
        meter.note_answer(admitted(meter), latency_s=600.0, tokens=2**53 - 1, tokens_out=2**53 - 1)
    assert orjson.loads(orjson.dumps(asdict(meter.read().flow)))["answers"] == 1000
