"""How the relay's window is spread over several endpoints, and when a job may test one that is shut.

Each set of endpoints that serves a model has a part of the window. So jobs that only a slow or shut endpoint serves do
not fill the window, and hold up no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from schemas.job import Due
from worker.clock import Clock
from worker.policy.fairness import Account
from worker.policy.gates import PROBE_EVERY_S, Admission
from worker.policy.routing import has
from worker.storage.batches import fetch_held
from worker.storage.by_model import ModelChoice, count_published_by_model
from worker.storage.due import Describe, take_due, take_lone_due
from worker.storage.engine import Ledger, Transaction
from worker.storage.gate_waits import has_open_jobs

log = structlog.get_logger(__name__)
_MANY = 1000  # more than the jobs that may test a gate at a time
_SOON_S = 0.25
_LEAST_PART = 4
_LONE_PART = 64


class Gates(Protocol):
    """The gates of one endpoint."""

    @property
    def openings(self) -> int: ...
    @property
    def is_known_open(self) -> bool: ...
    def room(self, window: int) -> int: ...
    def admission(self) -> tuple[Admission, tuple[str, ...]]: ...


class Slots(Protocol):
    """The slots of this worker at all endpoints."""

    @property
    def limit(self) -> float: ...
    def limit_of(self, group: int) -> int: ...
    def let_probe(self, index: int, count: int = 1) -> None: ...
    def end_probe(self, index: int) -> None: ...
    def may_probe(self, index: int) -> bool: ...


class Routes(Protocol):
    """Which endpoints serve which model."""

    @property
    def groups(self) -> tuple[int, ...]: ...
    def find(self, model: str | None) -> int: ...


@dataclass(slots=True)
class Tested:
    """An endpoint whose gates are looked at. `may_call_a_job`: whether a job may test it, or it is asked otherwise."""

    gates: Gates
    may_call_a_job: Callable[[], bool]
    admission: Admission = Admission.OPEN
    refused: tuple[str, ...] = ()
    tests: int = 0  # how many jobs may test it at a time
    let_s: float = float("-inf")  # when a job was last allowed to test it


class Spread:
    """One per worker of several endpoints, for its relay."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        *,
        endpoint: str,
        endpoints: Sequence[Tested],
        routes: Routes,
        slots: Slots,
        on_change: Callable[[], None],
    ) -> None:
        """`endpoint`: under which the jobs are filed. `on_change` is told when an endpoint takes calls, or no more."""
        self._ledger = ledger
        self._clock = clock
        self._endpoint = endpoint
        self._endpoints = tuple(endpoints)
        self._routes = routes
        self._slots = slots
        self._on_change = on_change
        self._choice = ModelChoice(self._wants, is_hopeless=self._is_hopeless, monotonic_s=clock.monotonic_s)
        self._takers: tuple[bool, ...] = ()
        self._budgets: dict[int, int] = {}
        self._tests: set[int] = set()  # sets of endpoints of which a job is only to test one
        self._avoids_refused = True
        self._is_lack_told = False

    @property
    def openings(self) -> int:
        return sum(one.gates.openings for one in self._endpoints)

    def admission(self) -> tuple[Admission, tuple[str, ...]]:
        """What is allowed now at the best of the endpoints."""
        is_any = any(one.admission is Admission.OPEN for one in self._endpoints)
        return Admission.OPEN if is_any else Admission.SHUT, ()

    def room(self, window: int) -> int:
        """How many jobs may be in the broker; 0 where no endpoint may be called. Looks at all gates."""
        is_wanted: bool | None = None
        for index, one in enumerate(self._endpoints):
            one.tests = one.gates.room(_MANY)
            before, (one.admission, one.refused) = one.admission, one.gates.admission()
            if one.admission in (Admission.OPEN, Admission.SHUT):
                one.tests = 0
                self._slots.end_probe(index)
                continue
            if one.admission is not before:
                one.let_s = float("-inf")
            if is_wanted is None:
                with self._ledger.read() as connection:
                    is_wanted = has_open_jobs(connection, self._endpoint)
            now_s = self._clock.monotonic_s()
            every_s = PROBE_EVERY_S if one.tests == 1 else _SOON_S  # several at a time: it has answered one
            if is_wanted and now_s - one.let_s >= every_s and one.may_call_a_job():
                one.let_s = now_s
                self._slots.let_probe(index, one.tests)
        takers = tuple(
            one.gates.is_known_open or self._slots.may_probe(index)
            for index, one in enumerate(self._endpoints)
        )
        if takers != self._takers:
            self._takers = takers
            self._choice.forget()
            self._on_change()
        return window if any(takers) else 0

    def take(
        self, connection: Transaction, *, window: int, account: Account, now_ms: int, describe: Describe
    ) -> tuple[list[Due], Account]:
        """Jobs to publish now, marked as published; and the account with which the next call begins."""
        held = fetch_held(connection, self._endpoint)
        published = self._count(connection, held)
        groups = self._routes.groups
        lone: list[Due] = []
        lone_window = _LONE_PART * len(groups)
        self._plan(groups, published, is_bulk=False, window=lone_window)
        if any(room > 0 for room in self._budgets.values()):
            lone = take_lone_due(
                connection, self._endpoint, window=lone_window, now_ms=now_ms, held=held, only=self._choice
            )
        for job in lone:
            published[False, self._routes.find(job.model)] += 1
        self._plan(groups, published, is_bulk=True, window=window)
        room = sum(max(0, one) for one in self._budgets.values())
        due, account = take_due(
            connection,
            self._endpoint,
            room=room,
            account=account,
            now_ms=now_ms,
            held=held,
            only=self._choice,
            describe=describe,
        )
        # A job that was refused tests a gate where there is no other one.
        self._avoids_refused = not self._tests or not self._avoids_refused or bool(lone or due)
        return lone + due, account

    def _count(self, connection: Transaction, held: Collection[str]) -> Counter[tuple[bool, int]]:
        found: Counter[tuple[bool, int]] = Counter()
        for (is_bulk, model), count in count_published_by_model(
            connection, self._endpoint, held=held
        ).items():
            found[is_bulk, self._routes.find(model)] += count
        return found

    def _plan(
        self, groups: Sequence[int], published: Counter[tuple[bool, int]], *, is_bulk: bool, window: int
    ) -> None:
        """How many jobs of each set of endpoints are to be published now."""
        whole = max(1.0, self._slots.limit)
        least = max(_LEAST_PART, window // (4 * len(groups)))
        self._tests.clear()
        for group in groups:
            there = published[is_bulk, group]
            if any(
                has(group, index) and one.gates.is_known_open for index, one in enumerate(self._endpoints)
            ):
                part = _LONE_PART if not is_bulk else round(window * self._slots.limit_of(group) / whole)
                self._budgets[group] = max(least, part) - there
                # A window that is nearly full can wait: a look costs the same for one job as for a hundred.
                if is_bulk and self._budgets[group] * 4 < max(least, part):
                    self._budgets[group] = 0
                continue
            tested = published[False, group] + published[True, group]
            wanted = sum(
                one.tests
                for index, one in enumerate(self._endpoints)
                if has(group, index) and self._slots.may_probe(index)
            )
            self._budgets[group] = max(0, wanted - tested)
            if wanted:
                self._tests.add(group)

    def _wants(self, job: Due) -> bool:
        group = self._routes.find(job.model)
        if not group and not self._is_lack_told:
            self._is_lack_told = True
            log.warning("route.none_serves", job_id=job.id)  # the job waits in the ledger for other settings
        if self._budgets.get(group, 0) < 1 or (group in self._tests and self._is_refused(group, job.id)):
            return False
        self._budgets[group] -= 1
        return True

    def _is_hopeless(self, model: str) -> bool:
        """Whether none of the endpoints of this model takes calls."""
        group = self._routes.find(model)
        return not any(has(group, index) and takes for index, takes in enumerate(self._takers))

    def _is_refused(self, group: int, job_id: str) -> bool:
        """Whether the job was refused before by one that it might test, so that another one is to test it."""
        return any(
            has(group, index)
            and job_id in one.refused
            and (self._avoids_refused or one.admission is Admission.PROBE_OF_OTHERS)
            for index, one in enumerate(self._endpoints)
        )
