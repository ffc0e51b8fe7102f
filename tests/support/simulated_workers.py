"""Workers that share one adaptive limit, against a modelled endpoint: hours of it in a second, the same for a seed."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from tests.support.modelled_endpoints import Call, Endpoint, Time
from worker.policy import concurrency
from worker.policy.concurrency import Limit, parse_limit
from worker.policy.flow import NOTHING, Flow, one_answer
from worker.policy.shares import grant, share_out

PROMPT_TOKENS, ANSWER_TOKENS = 100, 300


def same(rng: random.Random) -> float:
    return 1.0


def nearly_same(rng: random.Random) -> float:
    return rng.uniform(0.9, 1.1)


def lognormal(rng: random.Random) -> float:
    """Lengths of a mean of 1; of a hundred, one is 10 times the median."""
    return rng.lognormvariate(-0.5, 1.0)


@dataclass(eq=False)
class Worker:
    name: int
    limit: Limit
    share: int = 0
    in_flight: int = 0
    flow: Flow = NOTHING  # since the last exchange, of the epoch of `limit`
    full_ms: float = 0.0
    was_open: int = 0  # calls in flight at the last exchange
    exchanged_s: float = 0.0
    at_s: float = 0.0
    is_gone: bool = False
    last_s: float = -1.0
    is_told: bool = False  # an exchange is planned at once


@dataclass
class World:
    """`workers` of them call `endpoint`, with `jobs` jobs, or without end, or with as many as `demand` allows at once."""

    time: Time
    endpoint: Endpoint
    rng: random.Random
    jobs: float = math.inf
    demand: Callable[[float], float] = lambda now_s: math.inf
    size: Callable[[random.Random], float] = nearly_same
    has_usage: bool = True
    blur: float = 0.0  # calls of one length take so differently long (sigma of the logarithm)
    cap: int = 256
    remembered: Limit | None = None
    tick_s: float = 0.1
    steady_tick_s: float = 0.1  # where the share did not change lately, and none is tried
    gap_s: float = 0.005  # from the end of a call to the start of the next one in its slot
    late_s: float = (
        0.0  # a new slot is filled so much later, at most: its job must be claimed first, and find a thread
    )
    lone_part: int = (
        0  # of so many slots, one is for lone jobs, of which there are none; 0: there is no such part
    )
    answered: list[tuple[float, float]] = field(default_factory=list)  # when, and how large
    refused: list[float] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    changes: list[tuple[float, Limit]] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    is_over: bool = False

    def __post_init__(self) -> None:
        self.limit = concurrency.start(self.remembered, cap=self.cap, now_ms=0)
        self.changes.append((0.0, self.limit))
        self.flow = NOTHING
        self.left, self.open = self.jobs, self.jobs

    @property
    def now_ms(self) -> int:
        return round(self.time.now_s * 1000)

    def join(self) -> Worker:
        worker = Worker(len(self.workers), self.limit, at_s=self.time.now_s)
        self.workers.append(worker)
        self._exchange(worker)
        self._tick(worker)
        return worker

    def leave(self, worker: Worker) -> None:
        worker.is_gone = True

    def run(self, until_s: float) -> None:
        self.time.run(until_s, lambda: self.is_over)

    # ── what a worker does ──

    def _demand(self, worker: Worker) -> int:
        """Calls in flight, and jobs that wait for a slot."""
        if worker.is_gone:
            return worker.in_flight
        here = sum(not one.is_gone for one in self.workers)
        busy = sum(one.in_flight for one in self.workers)
        ready = min(self.left, self.demand(self.time.now_s) - busy)
        return worker.in_flight + int(
            max(0, min(math.ceil(ready / here) if ready < self.cap else self.cap, self.cap))
        )

    def _fill(self, worker: Worker, late_s: float = 0.0) -> None:
        if worker.is_gone or worker.is_told:  # after a refusal it waits for the new limit
            return
        while worker.in_flight < self.for_bulk(worker.share) and self.now_ms >= worker.limit.resume_ms:
            busy = sum(one.in_flight for one in self.workers)
            if self.left <= 0 or busy >= self.demand(self.time.now_s):
                return
            self.left -= 1
            self._take_slot(worker, self.waiting.pop() if self.waiting else self.size(self.rng), late_s)

    def for_bulk(self, slots: float) -> float:
        """Those that bulk jobs may use."""
        return slots - (slots // self.lone_part if self.lone_part else 0)

    def _take_slot(self, worker: Worker, size: float, late_s: float) -> None:
        self._count_full(worker)
        worker.in_flight += 1
        epoch = worker.limit.epoch
        if late_s:
            self.time.after(self.rng.uniform(0.0, late_s), lambda: self._begin(worker, size, epoch))
        else:
            self._begin(worker, size, epoch)

    def _begin(self, worker: Worker, size: float, epoch: int) -> None:
        began_s = self.time.now_s
        self.begun.append(began_s)
        taken = size * self.rng.lognormvariate(0.0, self.blur) if self.blur else size
        self.endpoint.begin(
            Call(taken, lambda is_answered: self._end(worker, size, began_s, epoch, is_answered))
        )

    def _end(self, worker: Worker, size: float, began_s: float, epoch: int, is_answered: bool) -> None:
        self._count_full(worker)
        worker.in_flight -= 1
        now_s = self.time.now_s
        if is_answered:
            self.answered.append((now_s, size))
            self.open -= 1
            self.is_over = self.open <= 0
            out = round(ANSWER_TOKENS * size) if self.has_usage else 0
            worker.flow += one_answer(
                call_ms=max(1, round((now_s - began_s) * 1000)),
                tokens=out + PROMPT_TOKENS if self.has_usage else 0,
                tokens_out=out,
                is_counted=worker.limit.counts_answer(epoch),
            )
        else:
            self.refused.append(now_s)
            wait_s = concurrency.refused_wait_ms(worker.limit) / 1000 * self.rng.uniform(1.0, 1.25)
            self.time.after(wait_s, lambda: self._come_back(size))
            if worker.limit.counts_refusal(epoch):
                worker.flow += Flow(refusals=1)
                self._tell(worker)
        if worker.limit.phase is concurrency.Phase.REFUSED and is_answered:
            self._tell(worker)
        self.time.after(self.gap_s, lambda: self._fill(worker))

    def _come_back(self, size: float) -> None:
        self.left += 1
        self.waiting.append(size)
        for worker in self.workers:
            self._fill(worker)

    def _count_full(self, worker: Worker) -> None:
        now_s = self.time.now_s
        is_resting = self.now_ms < worker.limit.resume_ms
        if self._demand(worker) >= worker.share > 0 and not is_resting:
            worker.full_ms += worker.share * (now_s - worker.at_s) * 1000
        worker.at_s = now_s

    def _tell(self, worker: Worker) -> None:
        """An exchange at once: a few milliseconds from now."""
        if not worker.is_told:
            worker.is_told = True
            self.time.after(0.005, lambda: self._exchange(worker))

    def _tick(self, worker: Worker) -> None:
        if worker.is_gone and not worker.in_flight:
            return
        before = worker.share
        self._exchange(worker)
        is_steady = worker.share == before and self.limit.phase is concurrency.Phase.HOLDING
        tick_s = self.steady_tick_s if is_steady else self.tick_s
        self.time.after(tick_s * self.rng.uniform(0.9, 1.1), lambda: self._tick(worker))

    # ── the store ──

    def replace(self, limit: Limit) -> None:
        if limit is not self.limit:
            self.limit, self.flow = parse_limit(asdict(limit)), NOTHING
            self.changes.append((self.time.now_s, self.limit))

    def _exchange(self, worker: Worker) -> None:
        worker.is_told = False
        self._count_full(worker)
        open_ms = max(worker.in_flight, worker.was_open) * (self.time.now_s - worker.exchanged_s) * 1000
        worker.was_open, worker.exchanged_s = worker.in_flight, self.time.now_s
        if worker.limit.epoch == self.limit.epoch:
            self.flow += worker.flow + Flow(full_ms=round(worker.full_ms), open_ms=round(open_ms))
            self.replace(concurrency.step(self.limit, self.flow, cap=self.cap, now_ms=self.now_ms))
        worker.flow, worker.full_ms, worker.limit = NOTHING, 0.0, self.limit
        demands = [self._demand(one) for one in self.workers]
        fair = share_out(self.limit.value, demands, turn=int(self.time.now_s / 2))[worker.name]
        held = sum(
            max(one.share if not one.is_gone else 0, one.in_flight)
            for one in self.workers
            if one is not worker
        )
        worker.share = grant(fair, self.limit.value, held)
        if self.limit.resume_ms > self.now_ms:
            self.time.after((self.limit.resume_ms - self.now_ms) / 1000, lambda: self._fill(worker))
        self._fill(worker, self.late_s)

    # ── what is measured ──

    def done(self, from_s: float, until_s: float) -> float:
        """Work answered a second, in calls of average size."""
        first, last = (bisect_left(self.answered, (at_s, 0.0)) for at_s in (from_s, until_s))
        return sum(size for _, size in self.answered[first:last]) / (until_s - from_s)

    def answers(self, from_s: float, until_s: float) -> float:
        first, last = (bisect_left(self.answered, (at_s, 0.0)) for at_s in (from_s, until_s))
        return (last - first) / (until_s - from_s)

    def part_refused(self, from_s: float, until_s: float) -> float:
        calls = bisect_left(self.begun, until_s) - bisect_left(self.begun, from_s)
        return (bisect_left(self.refused, until_s) - bisect_left(self.refused, from_s)) / max(1, calls)

    def values(self, from_s: float, until_s: float) -> list[tuple[float, int]]:
        """The limits of this time, each with how long it was (s)."""
        times = [at_s for at_s, _ in self.changes] + [math.inf]
        spans = [
            (min(until_s, end_s) - max(from_s, at_s), limit.value)
            for (at_s, limit), end_s in zip(self.changes, times[1:], strict=True)
        ]
        return [(span_s, value) for span_s, value in spans if span_s > 0]
