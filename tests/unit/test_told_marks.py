"""What a worker reports of limits that answers tell."""

from __future__ import annotations

import pytest

from schemas.rates import Allowance, RateHints
from tests.support.clock import FakeClock
from worker.throttle.gatekeeper import Permit
from worker.throttle.store import KeyName
from worker.throttle.told_marks import ToldMarks, ToldReport


class Calls:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.marks = ToldMarks(self.clock.monotonic_s)

    def begin(self, key: str | None = None) -> Permit:
        permit = Permit(key=None if key is None else KeyName(key, "a setting"))
        self.marks.begin(permit)
        return permit

    def end(
        self,
        permit: Permit,
        *,
        requests: Allowance | None = None,
        tokens: Allowance | None = None,
        model: str = "m",
    ) -> RateHints | None:
        told = RateHints(requests or Allowance(), tokens or Allowance())
        gate = self.marks.note(told if requests or tokens else None, permit, model)
        self.marks.end()
        return gate

    def report(self, *, permits: int | None = None, slots: int = 0) -> ToldReport | None:
        return self.marks.report(tokens_each=lambda: 100, permits=permits, slots=slots)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def test_without_headers_nothing_is_reported(calls: Calls) -> None:
    calls.end(calls.begin())
    assert calls.report() is None and not calls.marks.is_active


def test_the_least_of_all_answers_is_reported_once_and_in_calls(calls: Calls) -> None:
    permits = [calls.begin() for _ in range(4)]
    calls.clock.advance(0.2)
    for permit, left in zip(permits, (299, 296, 298), strict=False):
        calls.end(permit, requests=Allowance(300, left, 30.5), tokens=Allowance(9000, left * 10, 30.5))
    report = calls.report(permits=7, slots=3)
    assert report is not None and report.requests is not None and report.tokens is not None
    assert (report.requests.left, report.requests.early_ms, report.requests.late_ms) == (296, 30_300, 30_500)
    assert (report.tokens.left, report.tokens.limit) == (29, 90)
    assert (report.begun, report.in_flight, report.held) == (4, 1, 9), "two have a slot and have not begun"
    again = calls.report()
    assert again is not None and (again.requests, again.begun) == (None, 0)
    calls.marks.keep(report)
    kept = calls.report()
    assert kept is not None and kept.requests is not None, "the store did not get it"


def test_whole_seconds_may_have_been_cut(calls: Calls) -> None:
    calls.end(calls.begin(), requests=Allowance(300, 299, 30.0))
    report = calls.report()
    assert report is not None and report.requests is not None and report.requests.late_ms == 31_000
    calls.clock.advance(29.0)
    calls.end(calls.begin(), requests=Allowance(300, 2, 1.0))
    report = calls.report()
    assert report is not None and report.requests is not None and report.requests.late_ms == 2_000


def test_of_a_short_window_a_whole_second_is_not_added(calls: Calls) -> None:
    calls.end(calls.begin(), requests=Allowance(10, 9, 1.0))
    report = calls.report()
    assert report is not None and report.requests is not None and report.requests.late_ms == 1_050


def test_a_late_answer_that_nothing_remained_keeps_nobody_off_longer_than_the_window_lasts(
    calls: Calls,
) -> None:
    slow, slower = calls.begin(), calls.begin()
    calls.clock.advance(1.0)
    calls.end(calls.begin(), requests=Allowance(300, 20, 40.5))
    calls.clock.advance(30.0)
    gate = calls.end(slow, requests=Allowance(300, 0, 40.0))
    assert gate is not None and gate.wait_s == pytest.approx(10.5)
    calls.clock.advance(11.0)
    calls.end(calls.begin(), requests=Allowance(300, 299, 59.5))
    gate = calls.end(slower, requests=Allowance(300, 0, 40.0))
    assert gate is not None and gate.wait_s is None, "there is a new window"


def test_a_call_is_counted_for_sure_once_one_that_began_later_is_answered(calls: Calls) -> None:
    calls.end(calls.begin(), requests=Allowance(300, 299, 30.0))
    for _ in range(5):
        calls.begin()  # long ones
    calls.clock.advance(0.3)
    short, beside = calls.begin(), calls.begin()
    calls.clock.advance(0.2)
    calls.end(short, requests=Allowance(300, 292, 29.5))
    report = calls.report()
    assert report is not None and (report.in_flight, report.uncounted) == (6, 2)
    calls.end(beside)
    report = calls.report()
    assert report is not None and (report.in_flight, report.uncounted) == (5, 2)


@pytest.mark.parametrize(
    "said",
    [
        Allowance(300, None, 30.0),
        Allowance(300, 3, None),
        Allowance(300, 3, 0.0),
        Allowance(300, 3, 7200.0),  # the gate waits for that, not longer than it may
    ],
)
def test_what_an_answer_does_not_say_bounds_nothing(calls: Calls, said: Allowance) -> None:
    calls.end(calls.begin(), requests=said)
    report = calls.report()
    assert report is not None and report.requests is None


def test_limits_of_two_models_or_keys_in_turn_are_not_taken_for_one(calls: Calls) -> None:
    calls.end(calls.begin("a"), requests=Allowance(300, 299, 30.0))
    assert calls.report() is not None
    calls.end(calls.begin("a"), requests=Allowance(300, 3, 30.0), model="other")
    assert calls.report() is None
    calls.clock.advance(61)
    report = calls.report()
    assert report is not None and report.place == "a other"
    calls.end(calls.begin("b"), requests=Allowance(300, 3, 30.0), model="other")
    later = calls.report()
    assert later is not None and later.place == "b other", "it was long ago: another key is used now"


def test_after_a_long_silence_nothing_is_reported_unless_the_worker_waits_for_permits(calls: Calls) -> None:
    calls.end(calls.begin(), requests=Allowance(300, 299, 30.0))
    calls.clock.advance(121)
    assert calls.report(permits=0) is not None
    assert calls.report() is None and not calls.marks.is_active


def test_where_a_limit_comes_back_evenly_the_gate_waits_for_a_part_of_it(calls: Calls) -> None:
    for used in (1, 2, 4, 8):
        gate = calls.end(calls.begin(), requests=Allowance(300, 300 - used, used * 0.2))
        assert gate is not None and gate.wait_s is None
    gate = calls.end(calls.begin(), requests=Allowance(300, 0, 60.0))
    assert gate is not None and gate.wait_s == pytest.approx(0.6)
    report = calls.report()
    assert report is not None and report.requests is not None and report.requests.each_us == 200_000
