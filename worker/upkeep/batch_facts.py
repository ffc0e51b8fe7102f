"""What a worker knows of the batches that share its endpoint: their weights, and what a job of each takes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from worker.clock import Clock
from worker.policy.fairness import USUAL_WEIGHT, Waiting, guess_tokens
from worker.storage.batch_turns import Turn
from worker.storage.engine import Transaction
from worker.storage.weights import fetch_next_bodies, fetch_weights

_ENOUGH = 5  # answers tell what the next one takes
_SMOOTHING = 1 / 32  # of one answer in the mean of a batch
_SMOOTHING_OF_ALL = 1 / 256
_REMEMBERED = 1000  # batches
_LOOK_AGAIN_S = 2.0  # a weight may have been changed
_SAMPLE = 3  # requests show what a job takes, before an answer does
_SAMPLED = 32  # most batches of which requests are read in one turn


@dataclass(slots=True)
class _Mean:
    """A mean in which late values count more."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float, smoothing: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(1 / self.count, smoothing)


class BatchFacts:
    """One per process. Executors tell it what answers took, and the relay asks what jobs should take. Thread-safe.

    What it learned is in memory alone: any worker's answers are of all batches that are being called.
    """

    def __init__(self, clock: Clock, *, endpoint: str) -> None:
        self._clock = clock
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._answered: OrderedDict[str, _Mean] = OrderedDict()
        self._completion = _Mean()
        # Of the relay's thread alone:
        self._guesses: dict[str, int] = {}
        self._weights: dict[str, float] = {}
        self._weighed: set[str] = set()
        self._left_to_sample = 0
        self._looked_s = float("-inf")

    def note_answer(self, batch_id: str, *, tokens: int, completion_tokens: int) -> None:
        """An answer took so many tokens; 0: the endpoint does not tell."""
        if tokens <= 0:
            return
        with self._lock:
            self._completion.add(completion_tokens, _SMOOTHING_OF_ALL)
            self._answered.setdefault(batch_id, _Mean()).add(tokens, _SMOOTHING)
            self._answered.move_to_end(batch_id)
            if len(self._answered) > _REMEMBERED:
                self._answered.popitem(last=False)

    def describe(self, connection: Transaction, turns: Sequence[Turn]) -> list[Waiting]:
        """These batches, each with its weight and what a job of it should take."""
        self._look_at_weights(connection, {turn.batch_id for turn in turns})
        self._left_to_sample = _SAMPLED
        return [
            Waiting(
                turn.batch_id,
                tokens=self._find_tokens(connection, turn),
                weight=self._weights.get(turn.batch_id, USUAL_WEIGHT),
            )
            for turn in turns
        ]

    def _look_at_weights(self, connection: Transaction, batch_ids: set[str]) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s >= _LOOK_AGAIN_S:
            self._looked_s = now_s
            self._weights, self._weighed = {}, set()
            if len(self._guesses) > _REMEMBERED:
                self._guesses.clear()
        new = batch_ids - self._weighed
        if new:
            self._weights |= fetch_weights(connection, new)
            self._weighed |= new

    def _find_tokens(self, connection: Transaction, turn: Turn) -> int:
        with self._lock:
            mean = self._answered.get(turn.batch_id)
            if mean is not None and mean.count >= _ENOUGH:
                return max(1, round(mean.value))
            usual = round(self._completion.value) if self._completion.count >= _ENOUGH else None
        if turn.batch_id not in self._guesses:
            if not turn.has_ready or not self._left_to_sample:
                return guess_tokens((), completion_tokens=usual)
            self._left_to_sample -= 1
            bodies = fetch_next_bodies(connection, self._endpoint, turn.batch_id, at_most=_SAMPLE)
            self._guesses[turn.batch_id] = guess_tokens(bodies, completion_tokens=usual)
        return self._guesses[turn.batch_id]
