"""What the endpoint says of its limits, through a whole worker's parts: who waits, how long, and what it costs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_ledger_outages import Town
from tests.support.clock import FakeClock
from tests.support.ledger import job_row, state
from tests.support.moody import Reply, completion
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_jobs

BUSY = {
    "error": {"message": "Rate limit reached for m. Please try again in 7s.", "code": "rate_limit_exceeded"}
}


@pytest.fixture
def town(sqlite_ledger: Ledger, clock: FakeClock, tmp_path: Path) -> Iterator[Town]:
    town = Town(sqlite_ledger, clock, tmp_path / "house")
    yield town
    town.close()


def burnt(town: Town, ids: list[str]) -> set[int]:
    return {job_row(town.ledger, id_).attempts for id_ in ids}


def test_the_wait_in_a_refusals_words_is_obeyed_by_all_jobs_and_burns_nothing(town: Town) -> None:
    ids = town.put("a", "b", "c")
    town.endpoint.decide = lambda _: (429, BUSY)
    town.live(6.5)
    assert town.endpoint.calls.total() == 1
    town.endpoint.decide = completion
    town.live(5, until=lambda: town.states(ids) == {"succeeded"})
    assert town.states(ids) == {"succeeded"} and burnt(town, ids) == {0}
    assert town.endpoint.calls.total() == 4


def full(what: str, reset: str) -> dict[str, str]:
    return {f"X-RateLimit-Remaining-{what}": "0", f"X-RateLimit-Reset-{what}": reset}


@pytest.mark.parametrize("what", ["Requests", "Tokens"])
def test_a_limit_that_an_answer_says_is_reached_is_waited_for_before_anybody_is_refused(
    town: Town, what: str
) -> None:
    ids = town.put(*"abcde")
    town.endpoint.headers = full(what, "9s")
    town.live(8.5)
    assert town.endpoint.calls.total() == 1
    gate = town.house.fetch_gate()
    assert gate is not None and (gate.kind, gate.strikes, gate.needs_probe) == ("rate_limited", 0, False)
    town.endpoint.headers = {}
    town.live(3, until=lambda: town.states(ids) == {"succeeded"})
    assert town.states(ids) == {"succeeded"} and burnt(town, ids) == {0}
    assert town.endpoint.calls.total() == 5


def test_a_limit_that_a_failure_says_is_reached_is_waited_for_as_well(town: Town) -> None:
    town.put("a", "b")
    town.endpoint.decide = lambda text: (422, {"message": "no such field"})
    town.endpoint.headers = full("Requests", "9s")
    town.live(8)
    assert town.endpoint.calls.total() == 1


def test_a_limit_with_something_left_or_without_a_known_end_keeps_nobody_waiting(town: Town) -> None:
    ids = town.put("a", "b", "c")
    town.endpoint.headers = {"X-RateLimit-Remaining-Requests": "0", "X-RateLimit-Remaining-Tokens": "1"} | {
        "X-RateLimit-Reset-Tokens": "1h"
    }
    town.live(0.5)
    assert town.states(ids) == {"succeeded"}


def test_a_reset_that_is_far_away_is_waited_for_no_longer_than_a_retry_after(town: Town) -> None:
    town.put("a")
    town.endpoint.headers = full("Requests", "20h")
    town.live(0.5)
    gate = town.house.fetch_gate()
    assert gate is not None and gate.until_ms - town.clock.now_ms() <= 3_600_000


def test_a_probe_that_is_answered_opens_the_gate_and_its_limit_is_still_kept(town: Town) -> None:
    town.put("a", "b", "c")
    town.endpoint.decide = lambda _: (402, {"message": "no credit"})
    town.live(0.5)
    town.endpoint.decide, town.endpoint.headers = completion, full("Requests", "9s")
    town.live(4)
    gate = town.house.fetch_gate()
    assert town.endpoint.calls.total() == 2
    assert gate is not None and not gate.needs_probe


CAP = {
    "error": {
        "type": "invalid_request_error",
        "message": "You have reached your specified API usage limits. …",
    }
}


@pytest.mark.parametrize(
    "reply",
    [
        (400, CAP),
        (400, {"message": "Your credit balance is too low"}),
        (403, {"error": {"code": "billing_hard_limit_reached"}}),
        (429, {"error": {"code": "insufficient_quota"}}),
    ],
    ids=["cap", "credit", "403", "429"],
)
def test_an_empty_account_shuts_the_gate_at_its_first_word_whatever_the_status(
    town: Town, reply: Reply
) -> None:
    town.put("before")
    town.live(0.5)
    ids = town.put(*[f"job {n}" for n in range(30)])
    town.endpoint.decide = lambda _: reply
    town.endpoint.calls.clear()
    town.live(60)
    assert town.endpoint.calls.total() <= 9
    gate = town.house.fetch_gate()
    assert gate is not None and gate.kind == "quota" and gate.needs_probe
    assert "failed" not in town.states(ids) and burnt(town, ids) == {0}
    town.endpoint.decide = completion
    town.live(70, until=lambda: town.states(ids) == {"succeeded"})
    assert town.states(ids) == {"succeeded"}


def test_a_402_that_asks_for_less_at_once_is_a_cooldown_and_no_strike(town: Town) -> None:
    ids = town.put("a", "b", "c")
    town.endpoint.decide = lambda _: (
        402,
        {"error": {"code": "in_flight_budget_exhausted", "message": "busy"}},
    )
    town.endpoint.headers = {"Retry-After": "4"}
    town.live(3.5)
    gate = town.house.fetch_gate()
    assert gate is not None and (gate.kind, gate.strikes, gate.needs_probe) == ("rate_limited", 0, False)
    assert town.endpoint.calls.total() == 1
    town.endpoint.decide, town.endpoint.headers = completion, {}
    town.live(5, until=lambda: town.states(ids) == {"succeeded"})
    assert town.states(ids) == {"succeeded"} and burnt(town, ids) == {0}


def test_a_job_refused_again_and_again_comes_back_with_the_pace_of_the_answers(town: Town) -> None:
    town.put("served")
    town.live(0.5)
    ids = town.put("a")
    town.endpoint.decide = lambda _: (429, {"message": "Too Many Requests"})
    town.live(60)
    # Its own backoff would have left a handful of calls, and a wait of a minute.
    assert 15 <= town.endpoint.calls["a"] <= 60
    assert town.states(ids) == {"waiting"} and burnt(town, ids) == {0}
    town.endpoint.decide = completion
    assert town.live(30, until=lambda: town.states(ids) == {"succeeded"}) <= 9.5


def test_a_job_that_is_refused_once_does_not_wait_for_refusals_of_an_hour_ago(town: Town) -> None:
    """No call of this worker was answered in between: another one had the jobs, or there were none."""
    town.put("served")
    town.live(0.5)
    refused = town.put("a")
    town.endpoint.decide = lambda _: (429, {"message": "Too Many Requests"})
    town.live(5)
    town.ledger.run(lambda connection: cancel_jobs(connection, refused, now_ms=town.clock.now_ms()))
    town.clock.advance(3600)
    ids = town.put("b")
    town.live(0.5)
    assert town.endpoint.calls["b"] == 1
    town.endpoint.decide = completion
    assert town.live(30, until=lambda: town.states(ids) == {"succeeded"}) <= 3


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("status", [400, 404])
def test_a_mix_of_a_tenth_good_answers_ends_by_itself_and_a_cap_told_in_its_midst_is_waited_for(
    town: Town, status: int
) -> None:
    rng = random.Random(11)
    good = {f"job {n}": rng.random() < 0.1 for n in range(100)}

    def answer(text: str) -> Reply:
        words = f"Field not known, request id req_{rng.getrandbits(90):x}"
        return completion(text) if good.get(text, True) else (status, {"error": {"message": words}})

    def cap(_: str) -> Reply:
        used, day = rng.randint(1, 10**7), rng.randint(1, 28)
        return status, {"error": {"message": f"Access suspended until Mon, {day} Mar; used {used:,} tokens"}}

    ids = town.put(*good)
    town.endpoint.decide = answer
    assert town.live(120, until=lambda: town.states(ids) == {"succeeded", "failed"}) < 120
    assert [state(town.ledger, id_) == "succeeded" for id_ in ids] == list(good.values())
    ids = town.put(*[f"later {n}" for n in range(100)])
    town.endpoint.decide = cap
    town.endpoint.calls.clear()
    town.live(60)
    assert town.endpoint.calls.total() <= 20
    town.endpoint.decide = completion
    town.live(10, until=lambda: town.states(ids) <= {"succeeded", "failed"})
    assert [state(town.ledger, id_) for id_ in ids].count("failed") <= 1
    assert town.states(ids) <= {"succeeded", "failed"}
