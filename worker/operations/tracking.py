"""Jobs are followed to their end: each refresh reads what ended since the last one. Changes nothing."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from schemas.job import JobState
from worker.operations.gates import describe_trouble
from worker.policy.cost import NO_COST, CostSum, sum_costs
from worker.policy.gates import Gate
from worker.reports.summary import format_seconds
from worker.storage.calls import CallSums, fetch_oldest_call
from worker.storage.engine import Ledger
from worker.storage.reading import (
    Ending,
    count_running,
    fetch_endings,
    fetch_endings_of,
    fetch_states,
    fetch_trouble,
)

_PAGE = 500
_OVERLAP_MS = 5_000  # workers' clocks differ a little; what was seen already is ignored
_RECONCILE_S = 10.0
_RATE_WINDOW_S = 10.0
_LAST_CALLS = 20
_SLOW_S = 5  # a call that is older is named when it is among the last


@dataclass(slots=True)
class Progress:
    """Where the followed jobs stand."""

    total: int
    succeeded: int = 0
    failed: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: CostSum = NO_COST
    tokens_per_s: float = 0.0
    jobs_per_s: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    trouble: str | None = None  # what is waited for, when it is not a backoff: a gate, or the last slow calls
    calls: CallSums = field(default_factory=CallSums)  # once all has ended

    @property
    def done(self) -> int:
        """Jobs that have ended, with a result or without."""
        return self.succeeded + self.failed

    @property
    def left_s(self) -> float | None:
        """Seconds left at the present rate, or None when nothing moves."""
        return (self.total - self.done) / self.jobs_per_s if self.jobs_per_s else None


class Tracker:
    """Keeps `progress`, which may begin with what was done before, while `ids` end.

    An id that comes twice counts twice: it is wanted under two names. It follows the ledger's tail of endings: a
    refresh costs what ended since the last one, however many jobs there are.
    """

    def __init__(
        self,
        ledger: Ledger,
        ids: Iterable[str],
        progress: Progress,
        *,
        endpoint: str | None = None,
        find_gate: Callable[[], Gate | None] = lambda: None,
        find_trouble: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`endpoint`: whose pauses and refusals concern the jobs; any without it. `find_trouble`: of which neither
        the gate nor a waiting job knows."""
        self._ledger = ledger
        self._endpoint = endpoint
        self._find_gate = find_gate
        self._find_trouble = find_trouble
        self._open = Counter(ids)
        self._since_ms = time.time_ns() // 1_000_000
        self._reconciled_s = float("-inf")
        self._recent: deque[tuple[float, int, int]] = deque()
        self.progress = progress

    @property
    def is_done(self) -> bool:
        """Whether all that is followed has ended."""
        return not self._open

    def is_open(self, id_: str) -> bool:
        """Whether the job is followed and has not been seen to end."""
        return id_ in self._open

    def refresh(self) -> Progress:
        """The progress, brought up to now. Raises DatabaseAway."""
        now_s = time.monotonic()
        with self._ledger.read() as connection:
            endings = fetch_endings(connection, since_ms=self._since_ms - _OVERLAP_MS)
            self.progress.in_flight = count_running(connection)
            trouble = fetch_trouble(connection, self._endpoint)
        now_ms = time.time_ns() // 1_000_000
        said = describe_trouble(trouble, self._find_gate(), now_ms=now_ms)
        self.progress.trouble = said or self._find_trouble()
        if now_s - self._reconciled_s >= _RECONCILE_S:
            # What the tail may have missed (a clock that jumped, a very large burst) is found here.
            self._reconciled_s = now_s
            endings += self._reconcile()
        self._count(endings, now_s)
        if self.progress.trouble is None and 0 < len(self._open) <= _LAST_CALLS:
            self.progress.trouble = self._describe_last_calls()
        return self.progress

    def _describe_last_calls(self) -> str | None:
        """Which call the end waits for, and since when, where nothing is left but slow calls."""
        with self._ledger.read() as connection:
            oldest = fetch_oldest_call(connection, list(self._open))
        if oldest is None:
            return None
        age_s = (time.time_ns() // 1_000_000 - oldest[1]) // 1000
        if age_s < _SLOW_S:
            return None
        called = next(id_ for id_ in self._open if id_ == oldest[0])
        name = getattr(called, "custom_id", None) or called
        age = f"{age_s} s" if age_s < 60 else format_seconds(age_s)
        if len(self._open) == 1:
            return f"the last call, for {age}: {name}"
        return f"the last {len(self._open)} calls, the oldest for {age}: {name}"

    def _reconcile(self) -> list[Ending]:
        ids = list(self._open)
        found: list[Ending] = []
        for start in range(0, len(ids), _PAGE):
            some = ids[start : start + _PAGE]
            with self._ledger.read() as connection:
                found += fetch_endings_of(connection, some)
                known = fetch_states(connection, some)
            for id_ in some:
                if id_ not in known:  # it was removed: no run must wait for it for ever
                    count = self._open.pop(id_)
                    self.progress.failed += count
                    self.progress.failures["removed"] += count
        return found

    def _count(self, endings: list[Ending], now_s: float) -> None:
        progress = self.progress
        new = tokens = 0
        now_ms = time.time_ns() // 1_000_000
        for ending in endings:
            # Not beyond now: a worker whose clock is ahead would hide what the others end.
            self._since_ms = max(self._since_ms, min(ending.ended_at_ms, now_ms))
            count = self._open.pop(ending.id, 0)
            if not count:
                continue
            new += count
            if ending.state is JobState.SUCCEEDED:
                progress.succeeded += count
                progress.prompt_tokens += ending.prompt_tokens
                progress.completion_tokens += ending.completion_tokens
                progress.cost += sum_costs([ending.cost_nano])
                tokens += ending.completion_tokens
            else:
                progress.failed += count
                progress.failures[ending.failure_kind or ending.state.value] += count
        self._recent.append((now_s, new, tokens))
        while now_s - self._recent[0][0] > _RATE_WINDOW_S:
            self._recent.popleft()
        span_s = now_s - self._recent[0][0]
        if span_s > 0.2:
            progress.jobs_per_s = (
                sum(jobs for at, jobs, _ in self._recent if at > self._recent[0][0]) / span_s
            )
            progress.tokens_per_s = sum(t for at, _, t in self._recent if at > self._recent[0][0]) / span_s
