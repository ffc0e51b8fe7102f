"""Outages and refusals through a whole worker's parts, minute by minute: who waits, who fails, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.chat import parse_request
from tests.support.clock import FakeClock
from tests.support.house import House
from tests.support.ledger import job_row, put, rows, state
from tests.support.moody import MODEL, MoodyEndpoint, Reply, completion
from worker.attempt.models_probe import ModelsProbe, choose_credential
from worker.intake.submit import make_job
from worker.storage.engine import Ledger
from worker.upkeep.relay import Relay

PAGE = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
GONE = {"object": "error", "message": "The model `m1` does not exist.", "code": 404}
DENIED = (401, {"error": {"message": "key not allowed to access this model", "code": "401"}})
DEAR = (402, {"error": {"message": "This request needs more credits", "code": 402}})


class Town:
    """A worker's parts, an endpoint with moods, and a clock that goes on second by second."""

    def __init__(
        self, ledger: Ledger, clock: FakeClock, folder: Path, *, asks_models: bool = False, **settings: Any
    ) -> None:
        self.endpoint = MoodyEndpoint()
        self.endpoint.__enter__()
        settings.setdefault("api_key", "k")
        self.house = House(ledger, self.endpoint, folder, clock, **settings)  # type: ignore[arg-type]
        self.ledger, self.clock = ledger, clock
        self._openings = 0
        self.relay = Relay(
            ledger,
            lambda due: self.handed.extend(job.id for job in due),
            _Mark(),
            self.house.gates,
            clock,
            endpoint=self.house.endpoint,
            republish_after_s=1e6,
            may_probe=self._probe().may_call_a_job if asks_models else lambda: True,
        )
        self.handed: list[str] = []

    def _probe(self) -> ModelsProbe:
        house = self.house
        return ModelsProbe(
            house.gates.endpoint,
            self.clock,
            ask=lambda: house.client.models(credential=choose_credential(house.gates, house.credentials)),
            spawn=lambda work: work(),
        )

    def put(self, *texts: str, model: str = MODEL) -> list[str]:
        """Jobs in one batch, by their texts."""
        return [
            put(
                self.ledger,
                make_job(
                    parse_request({"model": model, "messages": [{"role": "user", "content": text}]}),
                    endpoint=self.house.endpoint,
                    batch_id="b",
                    is_bulk=True,
                ),
            )[0].id
            for text in texts
        ]

    def live(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> float:
        """Seconds that passed: the relay hands jobs out twice a second, and they are called in turn."""
        passed_s = 0.0
        while passed_s < seconds and not until():
            self.relay.tick()
            handed, self.handed = self.handed, []
            for id_ in handed:
                self.house.execute(id_)
            self.house.writer.call(lambda connection: None)  # what was given back is written
            self.clock.advance(0.5)
            passed_s += 0.5
        return passed_s

    def states(self, ids: list[str]) -> set[str]:
        return {state(self.ledger, id_) for id_ in ids}

    def close(self) -> None:
        self.house.close()
        self.endpoint.__exit__(None, None, None)


class _Mark:
    """A broker that forgets nothing."""

    def is_present(self) -> bool:
        return True

    def set(self) -> None:
        raise AssertionError("it was there")

    def is_empty(self) -> bool:
        return False

    def fetch_lying_jobs(self, at_most: int) -> frozenset[str]:
        return frozenset()


@pytest.fixture
def town(sqlite_ledger: Ledger, clock: FakeClock, tmp_path: Path) -> Iterator[Town]:
    town = Town(sqlite_ledger, clock, tmp_path / "house")
    yield town
    town.close()


def says(*refused: str, reply: Reply) -> Callable[[str], Reply]:
    """Answers everybody but `refused`."""
    return lambda text: reply if text in refused else completion(text)


def _full(*reply: Any) -> Any:
    return pytest.param(reply, marks=pytest.mark.full)


@pytest.mark.parametrize(
    "reply",
    [
        (503, {"message": "unavailable"}),
        (403, PAGE),
        _full(200, PAGE),
        _full(502, b"<html><title>502 Bad Gateway</title></html>"),
        _full(529, {"message": "overloaded"}),
        _full(504, b"<html>Gateway time-out</html>"),
        _full(404, GONE),
        _full(405, {"message": "Method Not Allowed"}),
    ],
    ids=lambda reply: f"{reply[0]}",
)
def test_an_outage_of_minutes_fails_no_job_burns_hardly_an_attempt_and_is_hardly_called_into(
    town: Town, reply: Reply
) -> None:
    served = town.put(*[f"before {n}" for n in range(3)])
    town.live(1)
    assert town.states(served) == {"succeeded"}
    ids = town.put(*[f"job {n}" for n in range(20)])
    town.endpoint.calls.clear()
    town.endpoint.decide = lambda _: reply
    town.live(60)
    calls = town.endpoint.calls.total()
    assert 10 <= calls <= 25, "a probe every five seconds, once it is known"
    assert town.states(ids) <= {"queued", "waiting"}
    town.endpoint.decide = completion
    took_s = town.live(60, until=lambda: town.states(ids) == {"succeeded"})
    assert took_s <= 10
    assert max(job_row(town.ledger, id_).attempts for id_ in ids) <= 1
    assert town.house.fetch_gate() is None


def test_a_request_that_is_refused_beside_an_outage_is_refused_still_when_it_is_over(town: Town) -> None:
    ids = town.put("odd", *[f"job {n}" for n in range(6)])
    town.endpoint.decide = lambda text: (404, GONE) if text == "odd" else (503, {"message": "no"})
    town.live(30)
    town.endpoint.decide = says("odd", reply=(404, GONE))
    town.live(30)
    assert state(town.ledger, ids[0]) == "failed"
    assert town.states(ids[1:]) == {"succeeded"}


def test_a_refusal_of_one_job_fails_it_as_soon_as_another_is_answered(town: Town) -> None:
    town.put("before")
    town.live(1)
    town.endpoint.decide = says("odd", reply=(404, GONE))
    odd, *others = town.put("odd", "b", "c", "d")
    town.live(3)
    assert (state(town.ledger, odd), town.states(others)) == ("failed", {"succeeded"})
    assert town.endpoint.calls["odd"] == 2
    row = job_row(town.ledger, odd)
    assert (row.failure_kind, row.http_status, row.attempts) == ("rejected", 404, 1)
    assert town.house.fetch_gate() is None


@pytest.mark.parametrize(("reply", "kind"), [(DENIED, "unauthorized"), (DEAR, "quota")])
def test_one_jobs_refused_key_is_its_own_and_holds_nobody_up(town: Town, reply: Reply, kind: str) -> None:
    town.endpoint.decide = says("denied", reply=reply)
    denied, *others = town.put("denied", "b", "c", "d")
    town.live(6)
    assert town.states(others) == {"succeeded"}
    row = job_row(town.ledger, denied)
    assert (row.state, row.failure_kind) == ("failed", kind)
    assert town.house.fetch_gate() is None


@pytest.mark.parametrize("reply", [DENIED, DEAR])
def test_a_job_that_comes_late_is_answered_within_seconds_while_another_is_denied(
    town: Town, reply: Reply
) -> None:
    town.endpoint.decide = says("denied", reply=reply)
    [denied] = town.put("denied")
    town.live(120)
    assert state(town.ledger, denied) == "waiting", "nothing has told yet that the key is good"
    [late] = town.put("late")
    assert town.live(60, until=lambda: state(town.ledger, late) == "succeeded") <= 3
    town.live(5)
    assert state(town.ledger, denied) == "failed"


def test_many_denied_jobs_among_others_shut_the_gate_for_a_moment_and_not_again_and_again(
    town: Town,
) -> None:
    denied = [f"denied {n}" for n in range(6)]
    town.endpoint.decide = says(*denied, reply=DENIED)
    ids = town.put(*[text for n in range(6) for text in (denied[n], f"a {n}", f"b {n}", f"c {n}")])
    took_s = town.live(120, until=lambda: town.states(ids) <= {"succeeded", "failed"})
    assert took_s <= 30
    assert [state(town.ledger, id_) for id_ in ids[::4]] == ["failed"] * 6
    assert sum(state(town.ledger, id_) == "succeeded" for id_ in ids) == 18


def test_a_key_that_is_refused_to_all_fails_nobody_and_is_tried_once_a_minute(town: Town) -> None:
    town.put("before")
    town.live(1)
    town.endpoint.decide = lambda _: DENIED
    ids = town.put(*[f"job {n}" for n in range(20)])
    town.live(300)
    assert town.endpoint.calls.total() <= 1 + 2 * 14, "each with both styles of the header"
    assert town.states(ids) <= {"queued", "waiting"}
    town.endpoint.decide = completion
    assert town.live(90, until=lambda: town.states(ids) == {"succeeded"}) <= 65


def test_a_denied_job_with_nobody_left_to_ask_ends_within_seconds_where_the_key_has_just_worked(
    town: Town,
) -> None:
    others = town.put("a", "b")
    town.live(1)
    town.endpoint.decide = says("denied", reply=DENIED)
    [denied] = town.put("denied")
    assert town.live(60, until=lambda: state(town.ledger, denied) == "failed") <= 20
    assert town.states(others) == {"succeeded"}
    assert town.house.fetch_gate() is None, "and the gate is open for the next"


def test_one_job_alone_that_always_fails_is_failed_after_its_six_attempts(town: Town) -> None:
    town.endpoint.decide = lambda _: (500, {"message": "boom"})
    [id_] = town.put("poison")
    assert town.live(300, until=lambda: state(town.ledger, id_) == "failed") < 200
    row = job_row(town.ledger, id_)
    assert (row.attempts, row.failure_kind, town.endpoint.calls["poison"]) == (6, "server_error", 6)
    assert town.house.fetch_gate() is None


def test_documents_that_always_crash_the_server_are_failed_while_the_others_are_served(town: Town) -> None:
    poison = [f"poison {n}" for n in range(3)]
    town.endpoint.decide = says(*poison, reply=(500, {"message": "boom"}))
    ids = town.put(*[text for n in range(3) for text in (poison[n], f"a {n}", f"b {n}", f"c {n}")])
    took_s = town.live(300, until=lambda: town.states(ids) <= {"succeeded", "failed"})
    assert took_s < 200
    assert [state(town.ledger, id_) for id_ in ids[::4]] == ["failed"] * 3
    assert sum(state(town.ledger, id_) == "succeeded" for id_ in ids) == 9


def test_the_last_attempt_of_a_job_is_not_spent_on_an_outage(town: Town) -> None:
    ids = town.put(*[f"job {n}" for n in range(8)])
    with town.ledger.write() as connection:
        from sqlalchemy import update  # local: only to have seen five attempts before

        from worker.storage.tables import jobs

        connection.execute(update(jobs).where(jobs.c.id.in_(ids[1:])).values(attempts=5))
    town.endpoint.decide = lambda _: (503, {"message": "no"})
    town.live(60)
    town.endpoint.decide = completion
    town.live(15)
    assert town.states(ids) == {"succeeded"}


def test_a_refused_key_fails_a_job_when_its_patience_is_spent(
    build: Callable[..., House],
) -> None:
    house = build(api_key="sk-wrong")
    id_ = house.put()
    tries = 0
    while state(house.ledger, id_) != "failed":
        tries += 1
        assert tries <= 8, "patience began anew"
        house.execute(id_)
        if state(house.ledger, id_) == "waiting":
            house.again(id_)
    assert tries == 5, "of each fifty minutes in which nobody tried, fifteen count"
    row = job_row(house.ledger, id_)
    assert (row.failure_kind, row.attempts) == ("unauthorized", 0)
    gate = house.fetch_gate()
    assert gate is not None and gate.needs_probe, "what it met still concerns the others"


def test_a_rate_limit_met_in_the_evening_has_not_spent_its_patience_in_the_morning(
    build: Callable[..., House],
) -> None:
    house = build(simulated={"rate_429": 1.0, "retry_after_s": 1.0})
    id_ = house.put()
    house.execute(id_)
    house.clock.advance(10 * 3600)
    house.again(id_)
    house.execute(id_)
    assert state(house.ledger, id_) == "waiting"
    assert len(rows(house.ledger, "attempts")) == 2
