"""Slots, evidence and gate against an endpoint that is flaky, or away for a while: hours of it in a second."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from schemas.failure import Failure, FailureKind
from tests.support.clock import FakeClock
from worker.policy.retry import Attribution
from worker.throttle.evidence import Evidence
from worker.throttle.gatekeeper import Gatekeeper, Permit
from worker.throttle.store import MemoryGateStore

DOWN = Failure(FailureKind.SERVER_ERROR, "HTTP 503", http_status=503)
REFUSED = Failure(FailureKind.UNREACHABLE, "connection refused", was_sent=False)
TICK_S = 0.25  # the relay's


@dataclass(order=True)
class _Event:
    at_s: float
    number: int
    do: Callable[[], None] = field(compare=False)


class World:
    """`slots` of two processes call one endpoint: `fails(at_s)` says whether a call that begins then fails, and a
    failure comes after a tenth of the time of an answer."""

    def __init__(
        self,
        *,
        slots: int,
        latency_s: float,
        fails: Callable[[float], bool],
        has_gate: bool = True,
        failure: Failure = DOWN,
    ) -> None:
        self.clock, self.store = FakeClock(), MemoryGateStore()
        self.keepers = [Gatekeeper(self.store, self.clock, probe_ttl_s=60) for _ in range(2)]
        self.evidence = [Evidence() for _ in self.keepers]
        self.openings, self.in_flight = [0, 0], [0, 0]
        self.latency_s, self.fails, self.has_gate = latency_s, fails, has_gate
        self.failure = failure
        self.now_s = 0.0
        self.events: list[_Event] = []
        self.began: list[float] = []  # of calls
        self.answered: list[float] = []
        self.burnt = 0
        self.shut_at: list[float] = []
        self._jobs = 0
        for slot in range(slots):
            self._at(0.0, lambda process=slot % 2: self._begin(process))

    def run(self, until_s: float) -> None:
        while self.events[0].at_s < until_s:
            event = heapq.heappop(self.events)
            self.clock.advance(event.at_s - self.now_s)
            self.now_s = event.at_s
            event.do()

    def _at(self, at_s: float, do: Callable[[], None]) -> None:
        self._jobs += 1
        heapq.heappush(self.events, _Event(at_s, self._jobs, do))

    def _begin(self, process: int) -> None:
        job = f"job{self._jobs}"
        permit = self.keepers[process].admit(job) if self.has_gate else self.keepers[process]._grant(None)
        if not permit.is_granted:
            self._at(self.now_s + TICK_S, lambda: self._begin(process))
            return
        self.began.append(self.now_s)
        self.in_flight[process] += 1
        fails = self.fails(self.now_s)
        took_s = self.latency_s * (0.1 if fails else 1.0)
        self._at(self.now_s + took_s, lambda: self._end(process, job, permit, fails=fails))

    def _end(self, process: int, job: str, permit: Permit, *, fails: bool) -> None:
        if fails:
            self._fail(process, job, permit)
        else:
            self.answered.append(self.now_s)
            self.keepers[process].succeeded(permit)
            self._note_openings(process)
            self.evidence[process].succeeded(
                job,
                "m",
                began=permit.order,
                number=permit.number,
                now_s=self.clock.monotonic_s(),
            )
        self.in_flight[process] -= 1
        self._begin(process)

    def _fail(self, process: int, job: str, permit: Permit) -> None:
        keeper = self.keepers[process]
        gate = keeper.current_gate(closely=True) if self.has_gate else None
        self._note_openings(process)
        verdict = self.evidence[process].judge(
            job,
            "m",
            self.failure,
            gate=gate,
            is_probe=permit.is_probe and gate is not None and gate.needs_probe,
            is_proven=True,
            is_last=False,
            is_only=False,
            has_others=lambda: True,
            number=permit.number,
            calls=keeper.calls,
            order=keeper.next_order(),
            now_s=self.clock.monotonic_s(),
            in_flight=self.in_flight[process],
        )
        shuts = verdict.attribution is Attribution.ENDPOINT or (
            verdict.attribution is Attribution.UNKNOWN and not self.failure.was_sent
        )
        if shuts and self.has_gate:
            self.shut_at.append(self.now_s)
            keeper.shut(self.failure.kind, asked_s=None, permit=permit, job_id=job, http_status=503)
        else:
            self.burnt += verdict.attribution is not Attribution.UNDECIDED  # such a job waits unburnt
            permit.leave()

    def _note_openings(self, process: int) -> None:
        if self.openings[process] != self.keepers[process].openings:
            self.openings[process] = self.keepers[process].openings
            self.evidence[process].reopened(self.clock.monotonic_s())


@pytest.mark.parametrize("rate", [0.2, 0.5])
@pytest.mark.parametrize("slots", [2, 16, 500])
def test_a_flaky_endpoint_loses_hardly_any_throughput_to_the_gate(slots: int, rate: float) -> None:
    done = {}
    latency_s, length_s = 2.0, 120_000 / slots / 10 if slots > 100 else 600.0
    for has_gate in (False, True):
        rng = random.Random(11)
        world = World(
            slots=slots, latency_s=latency_s, fails=lambda _, rng=rng: rng.random() < rate, has_gate=has_gate
        )
        world.run(30 + length_s)
        done[has_gate] = sum(at_s > 30 for at_s in world.answered)
    assert done[True] > 0.97 * done[False], done


@pytest.mark.parametrize("latency_s", [0.2, 2.0, 20.0])
@pytest.mark.parametrize("slots", [2, 5, 16, 500])
def test_an_outage_is_hardly_called_into_and_over_within_seconds(slots: int, latency_s: float) -> None:
    from_s = max(20.0, 5 * latency_s)
    until_s = from_s + 60
    world = World(slots=slots, latency_s=latency_s, fails=lambda at_s: from_s <= at_s < until_s)
    world.run(until_s + 60)
    meanwhile = [at_s for at_s in world.began if from_s + 1 <= at_s < until_s]
    known_s = latency_s * 3  # a process of one slot has its three failures by then
    assert sum(at_s >= from_s + known_s for at_s in meanwhile) <= 60
    assert len([at_s for at_s in world.began if from_s <= at_s < from_s + 1]) <= 3 * slots + 6
    # An endpoint whose answers take long has to give the first of them.
    back = sum(until_s < at_s <= until_s + 7 + latency_s for at_s in world.began)
    assert back >= min(slots, 10), "each slot has begun a call by then"
    assert world.burnt <= max(6, 0.7 * slots), "less than are in flight have burnt an attempt"


@pytest.mark.parametrize("rate", [0.05, 0.3])
@pytest.mark.parametrize("slots", [1, 16, 100])
def test_a_flaky_endpoint_is_never_shut(slots: int, rate: float) -> None:
    rng = random.Random(7)
    world = World(slots=slots, latency_s=2.0, fails=lambda _: rng.random() < rate)
    world.run(20_000 * 2.0 / slots)
    assert len(world.answered) > 17_000
    assert world.shut_at == []


@pytest.mark.parametrize("rate", [0.05, 0.3])
@pytest.mark.parametrize("slots", [16, 100])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_healthy_endpoint_that_becomes_flaky_from_one_moment_on_is_never_shut(
    slots: int, rate: float, seed: int
) -> None:
    rng = random.Random(seed)
    since_s = 2000 * 2.0 / slots
    world = World(slots=slots, latency_s=2.0, fails=lambda at_s: at_s >= since_s and rng.random() < rate)
    world.run(2 * since_s)
    assert world.shut_at == []
    failed = len(world.began) - len(world.answered)  # or in flight
    assert world.burnt > 0.9 * (failed - slots), "hardly any is left open"


@pytest.mark.parametrize("rate", [0.05, 0.3])
@pytest.mark.parametrize("slots", [16, 500])
def test_an_outage_of_a_flaky_endpoint_is_noticed_although_calls_from_before_it_are_still_answered(
    slots: int, rate: float
) -> None:
    rng = random.Random(1)
    world = World(slots=slots, latency_s=2.0, fails=lambda at_s: rng.random() < rate or 60 <= at_s < 120)
    world.run(60)
    assert world.shut_at == []
    before = world.burnt
    world.run(120)
    assert world.shut_at and world.shut_at[0] < 62, "within the time of one answer"
    assert world.burnt - before < 3 * slots
    assert sum(world.shut_at[0] + 1 < at_s < 120 for at_s in world.began) <= 60


def test_an_endpoint_that_answers_one_call_in_ten_is_shut_and_spends_few_attempts() -> None:
    rng = random.Random(2)
    world = World(slots=16, latency_s=2.0, fails=lambda at_s: at_s >= 60 and rng.random() < 0.9)
    world.run(60 + 600)
    assert world.burnt < 100
    began = sum(at_s > 90 for at_s in world.began)
    assert began < 400, "about one call in two seconds"


def test_after_an_outage_a_few_calls_go_before_all_do() -> None:
    world = World(slots=100, latency_s=1.0, fails=lambda at_s: 20 <= at_s < 50)
    world.run(80)
    back_s = next(at_s for at_s in world.answered if at_s > 51)
    first = sum(50 <= at_s < back_s for at_s in world.began)
    assert first <= 2, "probes"
    opened_s = next(at_s for at_s in world.answered if at_s > back_s)
    assert sum(back_s <= at_s < opened_s for at_s in world.began) <= 8
    assert sum(opened_s <= at_s < opened_s + 1 for at_s in world.began) >= 90


@pytest.mark.parametrize("slots", [2, 16, 100])
def test_one_backend_of_several_that_refuses_connections_stops_nobody(slots: int) -> None:
    rng = random.Random(3)
    world = World(slots=slots, latency_s=2.0, fails=lambda _: rng.random() < 0.05, failure=REFUSED)
    world.run(20 + 20_000 * 2.0 / slots)
    assert [at_s for at_s in world.shut_at if at_s > 5] == [], "the first answers have come by then"


@pytest.mark.parametrize("slots", [1, 2, 16, 500])
def test_an_endpoint_that_refuses_all_connections_is_called_no_more_after_a_handful_of_calls(
    slots: int,
) -> None:
    world = World(slots=slots, latency_s=2.0, fails=lambda at_s: 20 <= at_s < 50, failure=REFUSED)
    world.run(80)
    assert world.shut_at[0] < 20 + 2.5, "a slot that had a call in flight has to end it first"
    assert sum(world.shut_at[0] + 0.5 < at_s < 50 for at_s in world.began) <= 12, "probes"
    assert world.answered[-1] > 77, "and work goes on"
