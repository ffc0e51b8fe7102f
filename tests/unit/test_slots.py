"""Slots: bulk within its limit, lone jobs beside it, and a place to run alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from worker.attempt.slots import Slots
from worker.errors import Stopping


class Slot:
    """A thread that takes a place, says so, and holds it until told to leave."""

    def __init__(self, slots: Slots, *, is_bulk: bool = False, alone: bool = False) -> None:
        self.entered, self.inside, self.leave = threading.Event(), threading.Event(), threading.Event()
        self.stopped = False

        def run() -> None:
            try:
                with slots.enter(is_bulk=is_bulk):
                    self.entered.set()
                    if alone:
                        with slots.alone():
                            self.inside.set()
                            self.leave.wait(20)
                    else:
                        self.inside.set()
                        self.leave.wait(20)
            except Stopping:
                self.stopped = True

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def is_inside(self) -> bool:
        return self.inside.wait(10)

    def is_kept_out(self) -> bool:
        return not self.inside.wait(0.05)

    def go(self) -> None:
        self.leave.set()
        self.thread.join(10)
        assert not self.thread.is_alive()


def eventually(is_true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if is_true():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it never came true")


def test_bulk_takes_no_more_than_its_places_and_a_lone_job_passes_beside() -> None:
    slots = Slots(2)
    inside = [Slot(slots, is_bulk=True) for _ in range(2)]
    assert all(slot.is_inside() for slot in inside)
    third, lone = Slot(slots, is_bulk=True), Slot(slots)
    assert lone.is_inside()
    assert third.is_kept_out()
    inside[0].go()
    assert third.is_inside()
    for slot in (inside[1], third, lone):
        slot.go()
    assert slots.active == 0


def test_one_that_runs_alone_waits_for_the_others_and_keeps_new_ones_out() -> None:
    slots = Slots(4)
    other = Slot(slots, is_bulk=True)
    assert other.is_inside()
    solo = Slot(slots, is_bulk=True, alone=True)
    assert solo.entered.wait(10)
    assert solo.is_kept_out()
    late = Slot(slots)
    assert late.is_kept_out()
    other.go()
    assert solo.is_inside()
    assert late.is_kept_out()
    solo.go()
    assert late.is_inside()
    late.go()


def test_two_that_run_alone_do_so_one_after_the_other() -> None:
    slots = Slots(4)
    first, second = Slot(slots, alone=True), Slot(slots, alone=True)
    eventually(lambda: first.inside.is_set() or second.inside.is_set())
    now, then = (first, second) if first.inside.is_set() else (second, first)
    assert then.is_kept_out()
    now.go()
    assert then.is_inside()
    then.go()
    assert slots.active == 0


def test_the_others_have_their_turn_between_two_that_run_alone() -> None:
    slots = Slots(8)
    first = Slot(slots, alone=True)
    assert first.is_inside()
    others = [Slot(slots, is_bulk=True) for _ in range(3)]
    assert all(other.is_kept_out() for other in others)
    second = Slot(slots, alone=True)
    eventually(lambda: slots.active == 1 and second.thread.is_alive())
    first.go()
    assert all(other.is_inside() for other in others), "held back by the first, before the second"
    if second.entered.wait(0.05):
        assert second.is_kept_out()
    for other in others:
        other.go()
    assert second.is_inside()
    second.go()
    assert slots.active == 0


def test_stopping_wakes_everyone_who_waits_and_lets_nobody_in() -> None:
    slots = Slots(1)
    inside = Slot(slots, is_bulk=True)
    assert inside.is_inside()
    waiting = [Slot(slots, is_bulk=True) for _ in range(20)]
    solo = Slot(slots, alone=True)
    assert solo.entered.wait(10)
    lone = Slot(slots)
    slots.stop()
    for slot in [*waiting, solo, lone]:
        slot.thread.join(10)
        assert slot.stopped
    for is_bulk in (True, False):
        with pytest.raises(Stopping), slots.enter(is_bulk=is_bulk):
            pass
    inside.go()
    assert slots.wait_until_idle(lambda: False, timeout_s=5)


def test_a_call_that_runs_alone_is_in_flight() -> None:
    slots = Slots(1)
    solo = Slot(slots, alone=True)
    assert solo.is_inside()
    assert slots.active == 1
    assert not slots.wait_until_idle(lambda: True)
    slots.stop()
    assert not slots.wait_until_idle(lambda: True)
    solo.go()
    assert slots.wait_until_idle(lambda: False, timeout_s=5)


def test_a_place_is_given_back_when_its_job_breaks() -> None:
    slots = Slots(1)
    for _ in range(3):
        with pytest.raises(RuntimeError), slots.enter(is_bulk=True), slots.alone():
            raise RuntimeError
    assert slots.active == 0
    with slots.enter(is_bulk=True):
        assert slots.active == 1


def test_waiting_for_idle_gives_up_in_time_or_when_told() -> None:
    slots = Slots(1)
    with slots.enter(is_bulk=False):
        assert not slots.wait_until_idle(lambda: False, timeout_s=0.01)
        assert not slots.wait_until_idle(lambda: True)
    assert slots.wait_until_idle(lambda: False)
