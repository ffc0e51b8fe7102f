"""The limits of an endpoint, shared by its workers: the protocol of the store, and a store in memory for tests.

Each worker reports what it holds and wants, and is told its share. `exchange.lua` does the same in the broker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from worker.policy.concurrency import Limit
from worker.policy.flow import NOTHING, Flow
from worker.policy.rates import carry_over, cost_us, settle, take
from worker.policy.shares import grant, share_out
from worker.policy.told_windows import Window, count_left, grant_calls, note_window, pass_reset
from worker.throttle.told_marks import ToldReport

SILENT_MS = (
    30_000  # a worker that reports nothing for so long counts as lost, as by its lease, and holds nothing
)
TURN_MS = 5_000  # how long a worker has a call that does not divide
TOLD_KEPT_MS = 7_200_000  # limits that answers told, of a key or a model that is not used any more
SETTLING_MS = 1_500  # within this time, each worker that holds a share has reported to a store that forgot it


@dataclass(frozen=True, slots=True)
class Fixed:
    """Limits that are set, of all workers together. None: no such limit.

    The newest `version_ms` counts that a worker knows which has not ended: also for workers of another ledger.
    """

    in_flight: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    version_ms: int = 0

    @property
    def is_any(self) -> bool:
        return (self.in_flight, self.requests_per_minute, self.tokens_per_minute) != (None, None, None)


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker holds, wants and saw since its last report.

    `is_adaptive`: it has a part of the found limit, which others with a number of their own are not counted in.
    `applied`: the share by which it admits calls. `in_flight` was counted after `applied` was read, so from then on it
    has at most the greater of both in flight. `demand`: calls in flight and jobs that could be, `most` at most.
    `flow` is of `epoch`. `wanted`: permits to begin calls. `unused`: permits of before that it gives back.
    `each_tokens`: what one permit reserves. `back_tokens`: reserved, and not used by calls that have ended.
    `told`: limits that answers told.
    """

    worker_id: str
    most: int
    is_adaptive: bool = True
    applied: int = 0
    in_flight: int = 0
    demand: int = 0
    epoch: int = 0
    flow: Flow = NOTHING
    wanted: int = 0
    unused: int = 0
    each_tokens: int = 1
    back_tokens: int = 0
    told: ToldReport | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A new limit, to replace the one of the epoch `of_epoch`. 0: only where there is none."""

    limit: Limit
    of_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """A worker's part of the limits.

    `permits` None: no rate is limited. `limit`: the found limit, None where none is sought. `flow`: what all workers
    saw of its epoch. `in_flight`: of all workers. `has_changed`: the change was made. `wait_ms`: until one more permit.
    `now_ms`: by the store's clock.
    """

    slots: int
    permits: int | None
    limit: Limit | None
    flow: Flow
    in_flight: int
    workers: int
    now_ms: int
    wait_ms: int = 0
    has_changed: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """What the workers have in flight, as they told last, and how many workers there are."""

    in_flight: int
    workers: int


class StoreAway(Exception):
    """The store of the limits does not answer."""


class LimitStore(Protocol):
    """The limits of one endpoint."""

    def exchange(
        self, report: Report, fixed: Fixed, change: Change | None = None, *, has_others: bool = False
    ) -> Share:
        """This worker's share from now on. The change is made first, if its epoch is still the current one.

        The shares and what is in flight beyond them never sum to more than the limit. `has_others`: other workers live.
        A store that forgot everything then grants nothing new before they have told what they hold. Raises StoreAway.
        """

    def leave(self, worker_id: str) -> None:
        """Ends the worker's share. Its calls have ended. Raises StoreAway."""


@dataclass(slots=True)
class Held:
    """What the store knows of a worker."""

    seen_ms: int
    share: int = 0
    applied: int = 0
    in_flight: int = 0
    demand: int = 0
    most: int = 0
    is_adaptive: bool = True
    version_ms: int = 0  # of the set limits that it knows
    first: int = 0  # what it applied when it reported to a store that knew nothing of it
    words: ToldReport | None = None  # the latest
    permits: int = 0  # under limits that answers told, by now

    @property
    def held(self) -> int:
        return max(self.share, self.applied, self.in_flight)


@dataclass(slots=True)
class Told:
    """What the answers of one place told."""

    requests: Window | None = None
    tokens: Window | None = None
    seen_ms: int = 0


@dataclass(slots=True)
class State:
    """All that a store keeps of an endpoint."""

    began_ms: int
    fixed: Fixed = Fixed()
    limit: Limit | None = None
    flow: Flow = NOTHING
    requests_paid_us: int = 0  # since `began_ms`, as the next one
    tokens_paid_us: int = 0
    requests_rate: int | None = None  # the limit by which `requests_paid_us` was reckoned
    tokens_rate: int | None = None
    workers: dict[str, Held] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)


class MemoryLimitStore:
    """The limits of the workers of one process. `now_ms` is its clock."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._state: State | None = None
        self.is_away = False

    def exchange(
        self, report: Report, fixed: Fixed, change: Change | None = None, *, has_others: bool = False
    ) -> Share:
        if self.is_away:
            raise StoreAway
        with self._lock:
            now_ms = self._now_ms()
            if self._state is None:
                self._state = State(now_ms if has_others else now_ms - SETTLING_MS)
            return exchange(self._state, report, fixed, change, now_ms=now_ms)

    def leave(self, worker_id: str) -> None:
        if self.is_away:
            raise StoreAway
        with self._lock:
            if self._state is not None:
                self._state.workers.pop(worker_id, None)

    def forget(self) -> None:
        """As a broker that lost everything."""
        with self._lock:
            self._state = None


def exchange(state: State, report: Report, fixed: Fixed, change: Change | None, *, now_ms: int) -> Share:
    """What `exchange.lua` does, line by line."""
    has_changed = False
    if change is not None and change.of_epoch == (0 if state.limit is None else state.limit.epoch):
        state.limit, state.flow, has_changed = change.limit, NOTHING, True
    elif state.limit is not None and report.epoch == state.limit.epoch:
        state.flow += report.flow
    latest_ms = max((held.seen_ms for held in state.workers.values()), default=now_ms)
    for name, held in list(state.workers.items()):
        if not now_ms - SILENT_MS < held.seen_ms <= now_ms + 1000:
            del state.workers[name]
    if latest_ms > now_ms + 1000 or state.began_ms > now_ms:  # the clock was set back
        gone_us = max(0, max(latest_ms, now_ms) - state.began_ms) * 1000
        state.requests_paid_us -= gone_us
        state.tokens_paid_us -= gone_us
        state.began_ms = now_ms
        for held in state.workers.values():
            held.first = held.applied
        state.told.clear()
    own = state.workers.setdefault(report.worker_id, Held(now_ms, first=report.applied))
    own.seen_ms, own.applied, own.in_flight = now_ms, report.applied, report.in_flight
    own.demand, own.most = min(report.demand, report.most), report.most
    own.version_ms = fixed.version_ms
    if fixed.version_ms >= max(held.version_ms for held in state.workers.values()):
        state.fixed = fixed
    own.is_adaptive, own.share = report.is_adaptive, report.most
    if report.is_adaptive and state.limit is not None:
        sharing = [name for name, held in state.workers.items() if held.is_adaptive]
        own.share = _share(state, report.worker_id, sharing, state.limit.value, now_ms=now_ms)
    if state.fixed.in_flight is not None:
        all_of_them = _share(state, report.worker_id, state.workers, state.fixed.in_flight, now_ms=now_ms)
        own.share = min(own.share, all_of_them)
    if report.is_adaptive and state.limit is None:
        own.share = min(own.share, own.applied)  # no more calls before there is a found limit
    allowed, told_wait_ms = _allow(state, own, report, now_ms=now_ms)
    wanted = report.wanted if allowed is None else allowed
    permits, wait_us = _permits(state, report, wanted, now_us=(now_ms - state.began_ms) * 1000)
    if permits is None:
        permits = allowed
    own.permits = (0 if report.told is None else report.told.held) + (permits or 0)
    return Share(
        slots=own.share,
        permits=permits,
        limit=state.limit,
        flow=state.flow,
        in_flight=sum(held.in_flight for held in state.workers.values()),
        workers=len(state.workers),
        now_ms=now_ms,
        wait_ms=max(-(-wait_us // 1000), told_wait_ms),
        has_changed=has_changed,
    )


def _share(state: State, worker_id: str, sharing: Iterable[str], limit: int, *, now_ms: int) -> int:
    """The worker's part of a limit that the `sharing` ones have together."""
    names = sorted(sharing)
    own, index = state.workers[worker_id], names.index(worker_id)
    shares = share_out(limit, [state.workers[name].demand for name in names], turn=now_ms // TURN_MS)
    # What nobody demands is spread evenly: a job that comes to an idle worker finds a slot there.
    fair = min(own.most, shares[index] + (limit - sum(shares)) // len(names))
    if now_ms - state.began_ms < SETTLING_MS:
        fair = min(fair, own.first)
    return grant(fair, limit, sum(state.workers[name].held for name in names if name != worker_id))


def _allow(state: State, own: Held, report: Report, *, now_ms: int) -> tuple[int | None, int]:
    """Calls that the worker may begin under the limits that answers told, None: any; and ms until there are more."""
    for place, told in list(state.told.items()):
        if now_ms - told.seen_ms > TOLD_KEPT_MS:
            del state.told[place]
    own.words = words = report.told
    if words is None:
        return None, 0
    told = state.told.setdefault(words.place, Told())
    told.seen_ms = now_ms
    told.requests = _note(told.requests, words.requests, now_ms=now_ms)
    told.tokens = _note(told.tokens, words.tokens, now_ms=now_ms)
    there = [
        (held, held.words)
        for held in state.workers.values()
        if held.words is not None and held.words.place == words.place
    ]
    uncounted = sum(one.uncounted for _, one in there), sum(one.in_flight for _, one in there)
    found = count_left(zip((told.requests, told.tokens), uncounted, strict=True), now_ms=now_ms)
    if found is None:
        return None, 0
    left = found[0] - words.held - sum(held.permits for held, _ in there if held is not own)
    may_begin = sum(max(held.share, held.in_flight) + one.begun for held, one in there)
    allowed = grant_calls(left, report.wanted, workers=len(there), may_begin=may_begin)
    return allowed, found[1] if allowed is not None and allowed < report.wanted else 0


def _note(known: Window | None, told: Window | None, *, now_ms: int) -> Window | None:
    window = pass_reset(known, now_ms=now_ms)
    if told is None:
        return window
    told = replace(
        told,
        early_ms=told.early_ms + now_ms,
        late_ms=told.late_ms + now_ms,
        at_ms=told.at_ms + now_ms,
    )
    return note_window(window, told, now_ms=now_ms)


def _permits(state: State, report: Report, granted: int, *, now_us: int) -> tuple[int | None, int]:
    requests, tokens = state.fixed.requests_per_minute, state.fixed.tokens_per_minute
    wait_us = 0
    paid_us = each_us = credit_us = 0
    if requests is not None:
        each_us, credit_us = cost_us(requests), cost_us(requests, report.unused)
        paid_us = carry_over(
            state.requests_paid_us, now_us=now_us, before=state.requests_rate, per_minute=requests
        )
        paid_us = settle(paid_us, now_us=now_us, per_minute=requests, back=report.unused)
        state.requests_rate = requests
        granted, _, wait_us = take(
            paid_us, now_us=now_us, cost_us=each_us, wanted=granted, credit_us=credit_us
        )
    if tokens is not None:
        back = report.back_tokens + report.unused * report.each_tokens
        call_us = cost_us(tokens, report.each_tokens)
        paid_tokens_us = carry_over(
            state.tokens_paid_us, now_us=now_us, before=state.tokens_rate, per_minute=tokens
        )
        paid_tokens_us = settle(paid_tokens_us, now_us=now_us, per_minute=tokens, back=back, each_us=call_us)
        state.tokens_rate = tokens
        granted, state.tokens_paid_us, token_wait_us = take(
            paid_tokens_us,
            now_us=now_us,
            cost_us=call_us,
            wanted=granted,
            credit_us=cost_us(tokens, back),
        )
        wait_us = max(wait_us, token_wait_us)
    if requests is not None:
        _, state.requests_paid_us, _ = take(
            paid_us, now_us=now_us, cost_us=each_us, wanted=granted, credit_us=credit_us
        )
    if requests is None and tokens is None:
        return None, 0
    return granted, wait_us
