"""In an outage the endpoint is asked for its models before a job is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from api_client.errors import ApiError
from schemas.failure import Failure, FailureKind
from tests.contract.test_ledger_outages import Town
from tests.support.clock import FakeClock
from tests.support.ledger import job_row
from tests.support.moody import Reply, completion
from worker.attempt.models_probe import ModelsProbe
from worker.storage.engine import Ledger
from worker.storage.moves import cancel_jobs
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.store import MemoryGateStore

AWAY: Reply = (503, {"message": "unavailable"})


@pytest.fixture
def town(sqlite_ledger: Ledger, clock: FakeClock, tmp_path: Path) -> Iterator[Town]:
    town = Town(sqlite_ledger, clock, tmp_path / "house", asks_models=True)
    yield town
    town.close()


def break_down(town: Town, models: Reply = AWAY, reply: Reply = AWAY) -> list[str]:
    """An outage that begins with 20 jobs queued, once it is known."""
    served = town.put(*[f"before {n}" for n in range(3)])
    town.live(1)
    assert town.states(served) == {"succeeded"}
    ids = town.put(*[f"job {n}" for n in range(20)])
    town.endpoint.decide, town.endpoint.models = lambda _: reply, models
    town.live(1)
    town.endpoint.calls.clear()
    town.endpoint.asked = 0
    return ids


def test_no_job_is_called_on_a_dead_endpoint_and_all_are_when_it_lists_its_models_again(town: Town) -> None:
    ids = break_down(town)
    town.live(20)
    assert town.endpoint.calls.total() == 0
    assert 4 <= town.endpoint.asked <= 6, "after 1, 2, 4, 5, 5 s"
    assert {job_row(town.ledger, id_).attempts for id_ in ids} <= {0, 1}
    town.endpoint.decide, town.endpoint.models = completion, (200, {"data": [{"id": "m"}]})
    assert town.live(20, until=lambda: town.states(ids) == {"succeeded"}) <= 8
    assert town.states(ids) == {"succeeded"}
    assert town.endpoint.calls.total() == 20


def test_a_job_that_a_worker_has_in_hand_when_the_wait_is_over_does_not_test_before_the_list_is_answered(
    town: Town,
) -> None:
    ids = break_down(town)
    for id_ in ids[:5]:
        town.clock.advance(6)  # the wait is over, and no relay has looked since
        town.house.execute(id_)
    assert town.endpoint.calls.total() == 0
    town.live(20)
    assert town.endpoint.calls.total() == 0
    town.endpoint.decide, town.endpoint.models = completion, (200, {"data": [{"id": "m"}]})
    assert town.live(20, until=lambda: town.states(ids) == {"succeeded"}) <= 8
    assert town.states(ids) == {"succeeded"}


def test_a_list_that_is_answered_opens_nothing_until_a_job_is_answered(town: Town) -> None:
    break_down(town, models=(200, {"data": [{"id": "m"}]}))
    town.live(20)
    assert 4 <= town.endpoint.calls.total() <= 6
    assert town.endpoint.asked == town.endpoint.calls.total(), "asked once before each job"
    gate = town.house.store.fetch()
    assert gate is not None and gate.needs_probe


def test_an_endpoint_that_lists_its_models_and_answers_one_job_in_ten_meets_no_storm(town: Town) -> None:
    served = iter(range(1, 10_000))
    ids = break_down(town, models=(200, {"data": [{"id": "m"}]}))
    town.endpoint.decide = lambda text: completion(text) if next(served) % 10 == 0 else AWAY
    town.live(120)
    assert town.endpoint.calls.total() <= 120 / 5 + 8, (
        "a probe every five seconds, and two more after each good one"
    )
    assert max(job_row(town.ledger, id_).attempts for id_ in ids) <= 1
    gate = town.house.store.fetch()
    assert gate is not None and gate.needs_probe


def test_after_the_outage_a_few_jobs_go_first_and_the_list_is_not_asked_again(town: Town) -> None:
    ids = break_down(town)
    town.live(10)
    town.endpoint.decide, town.endpoint.models = completion, (200, {"data": [{"id": "m"}]})
    town.live(10, until=lambda: town.endpoint.calls.total() > 0)
    gate = town.house.store.fetch()
    assert gate is not None and gate.is_half_open
    asked = town.endpoint.asked
    town.relay.tick()
    assert len(town.handed) == 3
    for id_ in town.handed:
        town.house.execute(id_)
    town.handed.clear()
    assert town.house.store.fetch() is None
    town.live(5, until=lambda: town.states(ids) == {"succeeded"})
    assert (town.endpoint.asked, town.states(ids)) == (asked, {"succeeded"})


@pytest.mark.parametrize("left", [1, 2])
def test_where_fewer_jobs_are_left_than_would_go_first_the_gate_opens_with_the_last_of_them(
    town: Town, left: int
) -> None:
    ids = break_down(town)
    town.ledger.run(partial(cancel_jobs, ids=ids[left:], now_ms=town.clock.now_ms()))
    town.endpoint.decide = completion
    town.endpoint.models = (200, {"data": [{"id": "m"}]})
    town.live(20, until=lambda: town.states(ids[:left]) == {"succeeded"})
    assert town.states(ids[:left]) == {"succeeded"}
    assert town.house.store.fetch() is None


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("status", [401, 403, 404, 405, 429])
def test_an_endpoint_without_a_list_is_tested_with_jobs_and_not_asked_again(town: Town, status: int) -> None:
    ids = break_down(town, models=(status, {"message": "no"}))
    town.live(20)
    assert town.endpoint.asked == 1
    assert 4 <= town.endpoint.calls.total() <= 6
    town.endpoint.decide = completion
    town.live(20, until=lambda: town.states(ids) == {"succeeded"})
    assert town.states(ids) == {"succeeded"}


def test_a_list_that_alone_is_broken_keeps_the_gate_shut_for_half_a_minute_at_most(town: Town) -> None:
    ids = break_down(town)
    town.endpoint.decide = completion
    town.live(40, until=lambda: town.states(ids) == {"succeeded"})
    assert town.states(ids) == {"succeeded"}


def test_a_refused_key_or_a_gone_model_is_tested_with_jobs(town: Town) -> None:
    break_down(town, reply=(404, {"message": "The model `m` does not exist."}))
    town.live(20)
    assert town.endpoint.asked == 0 and town.endpoint.calls.total() >= 4


def test_an_endpoint_for_which_no_job_waits_is_left_alone(town: Town) -> None:
    ids = break_down(town)
    town.ledger.run(partial(cancel_jobs, ids=ids, now_ms=town.clock.now_ms()))
    town.endpoint.asked = 0
    town.live(30)
    assert (town.endpoint.asked, town.endpoint.calls.total()) == (0, 0)


def test_two_workers_ask_one_at_a_time_and_one_without_a_thread_tests_with_a_job(clock: FakeClock) -> None:
    store, asked = MemoryGateStore(), list[str]()
    waiting: list[Callable[[], None]] = []

    def make(name: str, spawn: Callable[[Callable[[], None]], Any]) -> ModelsProbe:
        keeper = Gatekeeper(store, clock, probe_ttl_s=60.0)
        return ModelsProbe(keeper, clock, ask=lambda: asked.append(name), spawn=spawn)

    def no_thread(_work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    Gatekeeper(store, clock, probe_ttl_s=60.0).shut(FailureKind.UNREACHABLE, asked_s=None)
    clock.advance(1.5)
    first, second = make("first", waiting.append), make("second", lambda work: work())
    assert not first.may_call_a_job()
    assert not first.may_call_a_job() and len(waiting) == 1, "it asks already"
    with Gatekeeper(store, clock, probe_ttl_s=60.0).admit() as permit:
        assert permit.is_probe
        assert not second.may_call_a_job() and asked == [], "another probe is on its way"
    waiting.pop()()
    assert asked == ["first"] and first.may_call_a_job()
    with Gatekeeper(store, clock, probe_ttl_s=60.0).admit("job") as permit:
        assert permit.is_probe, "also in a worker that has not asked itself"
    assert make("third", no_thread).may_call_a_job()


def test_a_worker_that_has_not_seen_the_latest_strike_yet_does_not_ask_again_and_again(
    clock: FakeClock,
) -> None:
    store, asked = MemoryGateStore(), list[str]()

    def make(name: str) -> ModelsProbe:
        def ask() -> None:
            asked.append(name)
            raise ApiError(Failure(FailureKind.SERVER_ERROR, "HTTP 503", http_status=503))

        return ModelsProbe(
            Gatekeeper(store, clock, probe_ttl_s=60.0), clock, ask=ask, spawn=lambda work: work()
        )

    Gatekeeper(store, clock, probe_ttl_s=60.0).shut(FailureKind.SERVER_ERROR, asked_s=None)
    first, second = make("first"), make("second")
    clock.advance(0.9)
    assert not second.may_call_a_job() and asked == [], "it is shut"
    clock.advance(0.12)  # the wait is over, and what the second has seen is not old yet
    first.may_call_a_job()
    assert asked == ["first"]
    assert not any(second.may_call_a_job() for _ in range(10))
    assert len(asked) <= 2
    found = store.fetch()
    assert found is not None and not found.lets_jobs and found.strikes == 2
