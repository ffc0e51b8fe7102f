"""Slots: how many calls a process makes at once, which jobs are claimed ahead of them, and when one runs alone.

Nothing here blocks, talks to a database or starts a thread, but for `alone`: the dispatcher asks what may be claimed
now and what may be called now, and says what became of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from worker.attempt.key_slots import KeySlots, KeyUser
from worker.errors import Stopping


class SlotUser(KeyUser, Protocol):
    """What slots are given to. `epoch`: that of the limit under which it got its slot."""

    epoch: int

    @property
    def is_bulk(self) -> bool:
        """False: a lone job, which never waits for bulk."""


T = TypeVar("T", bound=SlotUser)


class Slots(Generic[T]):
    """Where each received job of a process is: not claimed yet, claimed, in a call, or recorded just now.

    Bulk jobs use at most `bulk_limit` slots. Lone jobs may use those and `lone_limit` more, or any number where that
    is None. `ahead` jobs of each kind are claimed beyond the slots that they may use. `set_limit` changes both limits
    at any time; calls in flight go on, and no new one begins until there are fewer than the new limit.

    A job that runs alone waits until no other job of this process is claimed or in a call, and holds new claims back.
    Then the others have their turn, for as long as they were held back, before the next one that runs alone.
    """

    def __init__(
        self,
        bulk_limit: int,
        lone_limit: int | None = None,
        *,
        ahead: int = 1,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic_s = monotonic_s
        self.ahead = ahead
        self._bulk_limit = bulk_limit
        self._limit = _sum_limits(bulk_limit, lone_limit)
        self._waiting: dict[bool, deque[T]] = {False: deque(), True: deque()}  # by `is_bulk`
        self._claimed: dict[bool, deque[T]] = {False: deque(), True: deque()}
        self._started: deque[T] = deque()  # those that have a slot, and no thread yet
        self._inside = {False: 0, True: 0}  # whose claim was asked for and whose call has not ended
        self._calling = {False: 0, True: 0}
        self.lock = self._idle = threading.Condition()
        self._active = 0
        self._solo_waiting = 0
        self._held_back: set[T] = (
            set()
        )  # waiting when the last solo job ended: the next one waits until they are claimed
        self._others_until_s = 0.0
        self._is_solo_active = False
        self._is_stopping = threading.Event()
        self._permits: int | None = None  # calls that may begin; None: any number
        self._begun = self._begun_before = 0
        self.valid_until_s = float("inf")  # monotonic: no call begins later, until the limits are confirmed
        # A job could begin, but for the limit of all workers; or it is the first bulk job after a time without any.
        self.lacks = False
        self.epoch = 0  # of the limit of all workers, for those that get a slot from now on
        self.keys: KeySlots | None = None  # of an endpoint with several keys

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping.is_set()

    @property
    def active(self) -> int:
        """Jobs from their claim to their record: those that run alone, or wait to, are among them."""
        return self._active + self._solo_waiting + self._is_solo_active

    @property
    def bulk_limit(self) -> int:
        return self._bulk_limit

    @property
    def limit(self) -> float:
        """The most calls at once, lone jobs and all; infinity where lone jobs have no limit."""
        return self._limit

    @property
    def demand(self) -> int:
        """Jobs that have a slot or could use one: received, claimed, or in a call."""
        with self._idle:
            waiting = len(self._waiting[False]) + len(self._waiting[True])
            return (
                waiting + self._inside[False] + self._inside[True] + self._solo_waiting + self._is_solo_active
            )

    @property
    def in_flight(self) -> int:
        """Slots in use: calls, and those that begin with the next free thread."""
        with self._idle:
            return self._calling[False] + self._calling[True] + self._is_solo_active

    @property
    def permits(self) -> int | None:
        """Calls that may begin under a limited rate; None: it is not limited."""
        return self._permits

    @property
    def startable(self) -> int:
        """Calls that could begin now or until this is asked again, as many began since it was asked before."""
        with self._idle:
            jobs = sum(len(line) for lines in (self._waiting, self._claimed) for line in lines.values())
            free = self._limit - self._calling[False] - self._calling[True]
            return max(0, min(jobs + self._solo_waiting, int(min(free, 1e6)) + self.begun))

    @property
    def begun(self) -> int:
        """Calls that began since the last `grant`."""
        return self._begun - self._begun_before

    def count_waiting(self) -> int:
        """Jobs without a slot."""
        with self._idle:
            jobs = sum(len(line) for lines in (self._waiting, self._claimed) for line in lines.values())
            return jobs + self._solo_waiting

    def grant(self, permits: int | None) -> None:
        """Allows so many more calls to begin; None: any number."""
        with self._idle:
            self._permits = None if permits is None else (self._permits or 0) + permits
            self._begun_before = self._begun
            self.lacks = False
            if self._solo_waiting:
                self._idle.notify_all()

    def take_permits(self, count: int) -> int:
        """Takes back permits that were not used, at most `count`. Returns how many."""
        with self._idle:
            taken = min(count, self._permits or 0)
            if self._permits is not None:
                self._permits -= taken
            return taken

    def set_limit(self, bulk_limit: int, lone_limit: int | None = None) -> list[T]:
        """Changes the limits. The caller then claims and starts what they allow.

        With no slot left, nothing is claimed and no job runs alone. The claimed jobs that have no slot are then
        returned, so that another worker can have them: `leave` and `end` must follow.
        """
        with self._idle:
            self._bulk_limit = bulk_limit
            self._limit = _sum_limits(bulk_limit, lone_limit)
            surplus: list[T] = []
            if self._limit < 1 and not self.is_stopping:
                surplus = [*self._claimed[False], *self._claimed[True]]
                self._claimed[False].clear()
                self._claimed[True].clear()
            self._idle.notify_all()
        return surplus

    def add(self, one: T) -> bool:
        """Takes a job in, to be claimed. False during a shutdown."""
        with self._idle:
            if self.is_stopping:
                return False
            is_measured = self.epoch or self.keys is not None
            if is_measured and one.is_bulk and not self._waiting[True] and not self._inside[True]:
                self.lacks = True  # how the limit does is measured from now on
            self._waiting[one.is_bulk].append(one)
            return True

    def take_claimable(self) -> list[T]:
        """Those to claim now, lone jobs first. Each is followed by `add_claimed`, or by `leave` and `end`."""
        found: list[T] = []
        with self._idle:
            if self._limit < 1 and (self._waiting[False] or self._waiting[True]):
                self.lacks = True
            for is_bulk, limit in ((False, self._limit), (True, self._bulk_limit)):
                waiting = self._waiting[is_bulk]
                most = limit + self.ahead if limit else 0
                while waiting and self._may_claim() and self._inside[is_bulk] < most:
                    found.append(waiting.popleft())
                    self._inside[is_bulk] += 1
                    self._active += 1
                    self._held_back.discard(found[-1])
        return found

    def add_claimed(self, one: T) -> bool:
        """Takes a claimed job in, to be called. False during a shutdown, and while there are no slots at all."""
        with self._idle:
            if self.is_stopping or self._limit < 1:
                return False
            self._claimed[one.is_bulk].append(one)
            return True

    def take_slots(self) -> int:
        """Gives free slots to claimed jobs, lone jobs first; how many threads are to ask `take_started` therefore."""
        found = 0
        with self._idle:
            if self._monotonic_s() >= self.valid_until_s:
                return 0
            for is_bulk in (False, True):
                claimed = self._claimed[is_bulk]
                while claimed and self._calling[False] + self._calling[True] < self._limit:
                    if is_bulk and self._calling[True] >= self._bulk_limit:
                        break
                    if self._permits is not None and self._permits < 1:
                        self.lacks = True
                        break
                    if self.keys is not None and not self.keys.give(claimed[0]):
                        break
                    if self._permits is not None:
                        self._permits -= 1
                    claimed[0].epoch = self.epoch
                    self._started.append(claimed.popleft())
                    self._calling[is_bulk] += 1
                    found += 1
            self._begun += found
        return found

    def take_started(self) -> T | None:
        """The next job that has a slot, for a thread that makes its call; None where a shutdown took it."""
        with self._idle:
            return self._started.popleft() if self._started else None

    def leave(self, one: T, *, has_slot: bool = True) -> None:
        """The call has ended, or there will be none: the next job may have its slot."""
        with self._idle:
            self._inside[one.is_bulk] -= 1
            if has_slot:
                self._calling[one.is_bulk] -= 1
                if one.hold is not None:
                    one.hold.leave()

    def end(self) -> None:
        """What became of a job is written down: it is active no more."""
        with self._idle:
            self._active -= 1
            if self._solo_waiting or self.is_stopping:
                self._idle.notify_all()

    def stop(self) -> tuple[list[T], list[T]]:
        """Lets nobody in any more. Those that were not claimed yet, and those that were and have no thread.

        `leave` and `end` must follow for the latter. Those who wait to run alone raise Stopping.
        """
        with self._idle:
            self._is_stopping.set()
            waiting = [*self._waiting[False], *self._waiting[True]]
            claimed = [*self._claimed[False], *self._claimed[True]]
            for one in self._started:
                self._calling[one.is_bulk] -= 1
                if one.hold is not None:
                    one.hold.leave()
            claimed += self._started
            self._started.clear()
            for lines in (self._waiting, self._claimed):
                for line in lines.values():
                    line.clear()
            self._idle.notify_all()
        return waiting, claimed

    def wait_until_idle(self, is_enough: Callable[[], bool], *, timeout_s: float | None = None) -> bool:
        """Whether no job was active in the end; gives up when `is_enough` says so, asked ten times a second."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._idle:
            while self.active and not is_enough() and (end_s is None or time.monotonic() < end_s):
                self._idle.wait(0.1)
            return self.active == 0

    def _may_claim(self) -> bool:
        return not self._is_solo_active and (
            not self._solo_waiting or bool(self._held_back) or time.monotonic() < self._others_until_s
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For an active job without a slot: no other is active while inside. Blocks. Raises Stopping."""
        with self._idle:
            self._active -= 1  # else two who want to be alone would wait for each other
            self._solo_waiting += 1
            self._idle.notify_all()
            began_s = max(time.monotonic(), self._others_until_s)
            self._idle.wait_for(lambda: self.is_stopping or self._may_solo())
            self._solo_waiting -= 1
            if self.is_stopping:
                self._active += 1
                raise Stopping
            self._is_solo_active = True
            if self._permits:
                self._permits -= 1
        try:
            yield
        finally:
            with self._idle:
                self._is_solo_active = False
                self._active += 1
                self._held_back = {*self._waiting[False], *self._waiting[True]}
                now_s = time.monotonic()
                self._others_until_s = now_s + max(0.0, now_s - began_s)
                self._idle.notify_all()

    def begin_alone(self, one: T) -> bool:
        """Whether a claimed job that runs alone may be called: `end_alone` follows then."""
        with self._idle:
            if self.keys is not None:
                self.keys.give(one, is_sure=True)
        return True

    def end_alone(self, one: T) -> None:
        """Its call has ended."""
        if one.hold is not None:
            one.hold.leave()

    def _may_solo(self) -> bool:
        is_allowed = self._limit >= 1 and (self._permits is None or self._permits > 0)
        return self._active == 0 and not self._is_solo_active and not self._held_back and is_allowed


def _sum_limits(bulk_limit: int, lone_limit: int | None) -> float:
    return float("inf") if lone_limit is None else bulk_limit + lone_limit
