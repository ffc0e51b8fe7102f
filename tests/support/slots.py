"""Slots as a worker uses them, without its threads: jobs, what becomes of them, and one that runs alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from worker.attempt.key_slots import KeyHold
from worker.attempt.slots import Slots, SlotUser
from worker.errors import Stopping

J = TypeVar("J", bound=SlotUser)


@dataclass(eq=False)
class Job:
    """What was received."""

    is_bulk: bool = True
    epoch: int = 0
    hold: KeyHold | None = None


class Desk(Generic[J]):
    """Says of each job what becomes of it: claims are answered at once, calls end when a test says so."""

    def __init__(self, slots: Slots[J]) -> None:
        self.slots = slots
        self.claimed: list[J] = []
        self.calling: list[J] = []

    def take(self, *jobs: J) -> None:
        for job in jobs:
            assert self.slots.add(job)
        self.go_on()

    def go_on(self) -> None:
        for job in self.slots.take_claimable():
            self.claimed.append(job)
            if not self.slots.add_claimed(job):
                self.drop(job)
        for _ in range(self.slots.take_slots()):
            job = self.slots.take_started()
            assert job is not None
            self.calling.append(job)

    def drop(self, job: J) -> None:
        """The slots did not take a job that was claimed."""
        raise AssertionError(f"{job} was not taken")

    def end(self, *jobs: J) -> None:
        for job in jobs:
            self.calling.remove(job)
            self.slots.leave(job)
            self.slots.end()
            self.go_on()


class Solo:
    """A job that was claimed and has to run alone, in a thread of its own."""

    def __init__(self, slots: Slots[Job], job: Job | None = None) -> None:
        """`job`: it was claimed before."""
        self.inside, self.leave = threading.Event(), threading.Event()
        self.stopped = False
        if job is None:
            job = Job()
            assert slots.add(job)
            assert slots.take_claimable() == [job]
        slots.leave(job, has_slot=False)

        def run() -> None:
            try:
                with slots.alone():
                    self.inside.set()
                    self.leave.wait(20)
            except Stopping:
                self.stopped = True
            slots.end()

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


def waits(slots: Slots[Job]) -> bool:
    return slots._solo_waiting > 0
