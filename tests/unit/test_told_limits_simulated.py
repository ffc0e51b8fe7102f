"""Workers with their limiters against an endpoint that tells its limit: minutes of it in a second, without a sleep."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from api_client.simulator.rate_shapes import Shapes
from schemas.rates import Allowance, RateHints
from tests.support.clock import FakeClock
from tests.unit.test_limiter import Job, Ledger
from worker.attempt.slots import Slots
from worker.throttle.gatekeeper import Permit
from worker.throttle.limiter import Limiter
from worker.throttle.limits import MemoryLimitStore
from worker.throttle.meter import Meter

STEP_S = 0.01


@dataclass
class Endpoint:
    """`is_counted_late`: what remains is told as of the answer, and not as of the call's arrival."""

    shape: str
    limit: int
    window_s: float = 60.0
    latency_s: float = 0.2
    is_counted_late: bool = False
    tells: Callable[[Allowance], Allowance | None] = lambda said: said
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    rate: Shapes = field(default_factory=Shapes)
    answered: int = 0
    refused: int = 0

    def arrive(self, now_s: float) -> bool:
        wait_s = self.rate.of(self.shape).admit(b"", limit=self.limit, now=now_s, window_s=self.window_s)
        self.answered += wait_s == 0
        self.refused += wait_s > 0
        return wait_s == 0

    def say(self, now_s: float) -> RateHints | None:
        used, reset_s = self.rate.used(self.shape, b"", limit=self.limit, now=now_s, window_s=self.window_s)
        said = self.tells(Allowance(self.limit, max(0, self.limit - used), round(reset_s, 3)))
        return None if said is None else RateHints(said)


class World:
    """Workers that have any number of jobs. A call arrives at the endpoint up to 50 ms after it began."""

    def __init__(self, endpoint: Endpoint, *, workers: int, number: int | None = None) -> None:
        self.clock, self.endpoint = FakeClock(), endpoint
        self.store, self.ledger = MemoryLimitStore(self.clock.now_ms), Ledger()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()
        self.workers = [Worker(f"w{index}", self, number) for index in range(workers)]

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.clock.monotonic_s() + delay_s, next(self.order), do))

    def run(self, seconds: float) -> None:
        end_s = self.clock.monotonic_s() + seconds
        while self.clock.monotonic_s() < end_s:
            self.clock.advance(STEP_S)
            while self.events and self.events[0][0] <= self.clock.monotonic_s():
                heapq.heappop(self.events)[2]()


class Worker:
    def __init__(self, name: str, world: World, number: int | None) -> None:
        self.world, first = world, number or 16
        clock = world.clock
        self.slots: Slots[Job] = Slots(first, 0, monotonic_s=clock.monotonic_s)
        self.meter = Meter(monotonic_s=clock.monotonic_s)
        self.limiter = Limiter(
            world.store,
            world.ledger,
            self.slots,
            self.meter,
            clock,
            worker_id=name,
            own_limit=number or 256,
            first_limit=first,
            is_adaptive=number is None,
            apply=self._apply,
            advance=self.advance,
            openings=lambda: 0,
        )
        for _ in range(600):
            self.slots.add(Job())
        world.after(0.0, self._tick)

    def _apply(self, slots: int) -> None:
        for job in self.slots.set_limit(slots, 0):
            self.slots.leave(job, has_slot=False)
            self.slots.end()
            self.slots.add(job)
        self.advance()

    def _tick(self) -> None:
        self.world.after(max(0.03, self.limiter.tick()), self._tick)
        self.advance()

    def advance(self) -> None:
        for job in self.slots.take_claimable():
            assert self.slots.add_claimed(job)
        for _ in range(self.slots.take_slots()):
            job = self.slots.take_started()
            assert job is not None
            permit = Permit()
            self.meter.admit(permit, epoch=job.epoch)
            self.world.after(
                self.world.endpoint.rng.uniform(0.0, 0.05), lambda permit=permit: self._call(permit)
            )

    def _call(self, permit: Permit) -> None:
        endpoint, now_s = self.world.endpoint, self.world.clock.monotonic_s
        is_answered = endpoint.arrive(now_s())
        said = endpoint.say(now_s())

        def end() -> None:
            self.slots.leave(Job())
            if is_answered:
                self.meter.note_answer(permit, latency_s=endpoint.latency_s, tokens=100, tokens_out=50)
            else:
                self.meter.note_failure(permit, is_refusal=True)
            hints = endpoint.say(now_s()) if endpoint.is_counted_late else said
            self.meter.marks.note(hints, permit, "model")
            self.meter.marks.end()
            self.slots.end()
            self.slots.add(Job())
            self.advance()

        self.world.after(endpoint.latency_s * endpoint.rng.uniform(0.8, 1.2) if is_answered else 0.01, end)


@pytest.mark.parametrize("is_counted_late", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("latency_s", [0.2, 4.0])
@pytest.mark.parametrize("number", [None, 24])
def test_a_window_is_used_up_and_nothing_is_refused(
    workers: int, latency_s: float, number: int | None, is_counted_late: bool
) -> None:
    endpoint = Endpoint("window", 300, latency_s=latency_s, is_counted_late=is_counted_late)
    world = World(endpoint, workers=workers, number=number)
    world.run(60 - world.clock.monotonic_s() % 60)
    before = endpoint.answered, endpoint.refused
    world.run(300)
    print(
        "DATA window",
        workers,
        latency_s,
        number,
        is_counted_late,
        before,
        endpoint.answered - before[0],
        endpoint.refused,
    )
    assert endpoint.refused == 0
    assert endpoint.answered - before[0] >= 0.95 * 1500


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("latency_s", [0.2, 4.0])
def test_of_a_bucket_all_is_used_that_comes_back(workers: int, latency_s: float) -> None:
    endpoint = Endpoint("bucket", 300, latency_s=latency_s)
    world = World(endpoint, workers=workers)
    world.run(90)
    before = endpoint.answered
    world.run(300)
    print(
        "DATA bucket",
        workers,
        latency_s,
        endpoint.answered - before,
        endpoint.refused,
        world.endpoint.say(world.clock.monotonic_s()),
    )
    assert endpoint.refused <= 0.01 * endpoint.answered
    assert endpoint.answered - before >= 0.95 * 1500
