"""What the calls of a worker came to since it last reported: sums, added by the threads that make the calls."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import add, attrgetter

from worker.policy.allowances import reserve_tokens
from worker.policy.concurrency import Limit
from worker.policy.flow import Flow, one_answer
from worker.throttle.gatekeeper import Permit
from worker.throttle.told_marks import ToldMarks, ToldReport

_LATELY = 200  # answers whose tokens tell what the next one may take
_UNKNOWN_TOKENS = 1000  # reserved for a call before any was answered
_MOST_TOKENS = 10_000_000  # of one answer: an endpoint that tells more tells nonsense, and a square must fit
_FLOW_SIZE = len(fields(Flow))


@dataclass(frozen=True, slots=True)
class Reading:
    """The sums since the last reading. `refused_epoch`: the newest under which a refused call was admitted."""

    flow: Flow
    refused_epoch: int | None
    back_tokens: int  # reserved, and not used


class Meter:
    """One per process. Thread-safe. A call costs a short lock at its beginning, and two at its end."""

    def __init__(
        self,
        on_refusal: Callable[[], None] = lambda: None,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_refusal` is told of each refusal that is news. It must not block."""
        self.on_refusal = on_refusal
        self.epoch = 0
        self.reserved_tokens = 0  # for each call; 0 where tokens are not limited
        self.marks = ToldMarks(monotonic_s)
        self._lock = threading.Lock()
        self._limit: Limit | None = None
        self._sums = [0] * _FLOW_SIZE
        self._refused_epoch: int | None = None
        self._back_tokens = 0
        self._lately: deque[int] = deque(maxlen=_LATELY)

    def admit(self, permit: Permit, *, epoch: int | None = None) -> None:
        """Notes on the permit under which limit the call is admitted, and what is reserved for it.

        `epoch`: that of the limit when its slot was given; None: now. A thread may begin the call later, when the
        limit was lowered meanwhile: its refusal is no news then. `marks.end` follows, whatever comes of the call.
        """
        permit.epoch = self.epoch if epoch is None else epoch
        permit.reserved_tokens = self.reserved_tokens
        self.marks.begin(permit)

    def note_answer(self, permit: Permit, *, latency_s: float, tokens: int, tokens_out: int) -> None:
        """The call was answered. `tokens`: of prompt and completion; 0 where the endpoint tells no usage."""
        limit = self._limit
        tokens, tokens_out = min(tokens, _MOST_TOKENS), min(tokens_out, _MOST_TOKENS)
        if limit is None:
            seen = None
        else:
            seen = one_answer(
                call_ms=round(latency_s * 1000),
                tokens=tokens,
                tokens_out=tokens_out,
                is_counted=limit.counts_answer(permit.epoch),
            )
        with self._lock:
            if seen is not None and limit is self._limit:
                self._add(seen)
            if tokens:
                self._lately.append(tokens)
            self._back_tokens += permit.reserved_tokens - tokens if permit.reserved_tokens else 0

    def note_failure(self, permit: Permit, *, is_refusal: bool, tokens: int = 0) -> None:
        """The call failed. `is_refusal`: the endpoint would not take so many. `tokens`: paid for nevertheless."""
        with self._lock:
            self._back_tokens += permit.reserved_tokens - tokens if permit.reserved_tokens else 0
            limit = self._limit
            is_news = is_refusal and limit is not None and limit.counts_refusal(permit.epoch)
            if is_news:
                self._add(Flow(refusals=1))
                self._refused_epoch = max(permit.epoch, self._refused_epoch or 0)
        if is_news:
            self.on_refusal()

    def follow(self, limit: Limit | None) -> None:
        """Counts for this limit from now on. What was counted for another one is forgotten."""
        with self._lock:
            if (limit and limit.epoch) != (self._limit and self._limit.epoch):
                self._sums = [0] * _FLOW_SIZE
                self._refused_epoch = None
            self._limit = limit
            self.epoch = 0 if limit is None else limit.epoch

    def read(self) -> Reading:
        """The sums since the last reading, which begin anew."""
        with self._lock:
            reading = Reading(Flow(*self._sums), self._refused_epoch, self._back_tokens)
            self._sums = [0] * _FLOW_SIZE
            self._refused_epoch, self._back_tokens = None, 0
        return reading

    def expected_tokens(self) -> int:
        """What an answer takes: the 95th percentile of the latest ones."""
        with self._lock:
            lately = list(self._lately)
        return reserve_tokens(lately, unknown=_UNKNOWN_TOKENS)

    def told(self, *, permits: int | None, slots: int) -> ToldReport | None:
        """What to tell the store of the limits that answers told. `slots`: in use; `permits`: not used yet."""
        return self.marks.report(tokens_each=self.expected_tokens, permits=permits, slots=slots)

    def _add(self, seen: Flow) -> None:
        self._sums = list(map(add, self._sums, _values_of(seen)))


_values_of = attrgetter(*(one.name for one in fields(Flow)))
