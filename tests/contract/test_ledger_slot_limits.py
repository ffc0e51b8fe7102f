"""Limits that change at run time: what waits begins at once, what is in flight goes on, what has no slot goes back."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.ahead import Row, eventually
from tests.support.house import House
from tests.support.ledger import state
from worker.attempt.dispatch import Received
from worker.attempt.report import Verdict
from worker.attempt.slots import Slots
from worker.policy.concurrency import start


def test_a_higher_limit_calls_at_once_what_waits(build: Callable[..., House]) -> None:
    house = build(slots=Slots(1, 0, ahead=1))
    row = Row(house, ahead=1)
    house.dispatcher.set_limit(3, 0)
    eventually(lambda: len(row.endpoint.called) == 3)
    assert row.end() == [Verdict.SUCCEEDED] * 4


def test_a_lower_limit_cuts_no_call(build: Callable[..., House]) -> None:
    house = build(slots=Slots(1, 0, ahead=1))
    row = Row(house, ahead=1)
    house.dispatcher.set_limit(3, 0)
    eventually(lambda: len(row.endpoint.called) == 3)
    house.dispatcher.set_limit(1, 0)
    assert house.slots.in_flight == 3
    assert row.end() == [Verdict.SUCCEEDED] * 4
    assert house.simulator.stats()["calls"] == 4


def test_a_worker_without_a_slot_gives_back_what_it_claimed_ahead_as_if_nothing_had_been(
    build: Callable[..., House],
) -> None:
    house = build(slots=Slots(1, 0, ahead=2))
    row = Row(house, jobs=3)
    house.dispatcher.set_limit(0, 0)
    assert [one.result(20).verdict for one in row.reports[1:]] == [Verdict.GIVEN_BACK] * 2
    assert [state(house.ledger, id_) for id_ in row.ids] == ["running", "queued", "queued"]
    row.endpoint.answer()
    assert row.reports[0].result(20).verdict is Verdict.SUCCEEDED
    assert house.simulator.stats()["calls"] == 1
    assert not house.writer.open_claims


def test_the_number_claimed_ahead_and_held_follows_the_limit(build: Callable[..., House]) -> None:
    house = build(slots=Slots(16, 0))
    aims: list[int] = []
    house.dispatcher._on_ahead = aims.append
    house.dispatcher._claim_s, house.dispatcher._call_s = 0.1, 0.1
    house.dispatcher.set_limit(16, 0)
    house.dispatcher.set_limit(4, 0)
    house.dispatcher.set_limit(1, 0)
    assert aims == [4, 2, 1], "half of the slots at most, and what the settings allow"


def test_a_refused_call_is_told_before_its_slot_is_free_so_that_no_other_call_takes_it(
    build: Callable[..., House],
) -> None:
    house = build(simulated={"rate_429_bare": 1.0})
    house.route.meter.follow(start(None, cap=256, now_ms=0))
    seen: list[str] = []
    house.route.meter.on_refusal = lambda: seen.append("refused")
    leave = house.slots.leave

    def note_and_leave(one: Received, *, has_slot: bool = True) -> None:
        seen.append("left")
        leave(one, has_slot=has_slot)

    house.slots.leave = note_and_leave  # type: ignore[method-assign]
    house.slots.epoch = 1
    assert house.receive(house.put(), is_bulk=True).result(20).verdict is Verdict.WAITING
    assert seen == ["refused", "left"]
