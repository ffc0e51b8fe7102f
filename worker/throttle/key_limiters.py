"""The limiters of an endpoint whose limit is found by itself: one while it has one key, and one for each of several.

With several keys, each has a found limit of its own. What is set holds for all keys together, and so does the most that
is tried: the endpoint's own limiter shares that out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

from worker.clock import Clock
from worker.throttle.limiter import SHORTEST_S, Limiter
from worker.throttle.store import KeyName

_KEYS_EVERY_S = 1.0


class KeyUse(Protocol):
    """The slots of one key."""

    name: KeyName
    in_flight: int
    is_gone: bool


K = TypeVar("K", bound=KeyUse)


class KeySet(Protocol[K]):
    """The slots of the endpoint by key. `most`: the calls at once of all keys in this worker."""

    most: int

    @property
    def total(self) -> int: ...
    def add(self, name: KeyName) -> K: ...
    def remove(self, key_id: str) -> None: ...
    def set_share(self, slot: K, share: int) -> None: ...


@dataclass(slots=True)
class _Member(Generic[K]):
    limiter: Limiter
    slot: K
    due_s: float = field(default=float("-inf"))


class KeyLimiters(Generic[K]):
    """One per endpoint and process; `run` in a thread of its own, the same for all keys."""

    def __init__(
        self,
        keys: KeySet[K],
        names: Callable[[], Sequence[KeyName]],
        clock: Clock,
        *,
        build_whole: Callable[[Callable[[int], None]], Limiter],
        build: Callable[[K, Callable[[int], None]], Limiter],
        apply: Callable[[int], None],
        poked: threading.Event,
    ) -> None:
        """`build_whole` makes the endpoint's own limiter, `build` that of a key. Both are given what applies a share.

        `names`: the keys of now. `apply` makes a number of slots the limit of this worker. `poked`: of all limiters.
        """
        self._keys = keys
        self._names = names
        self._clock = clock
        self._build = build
        self._apply = apply
        self._poked = poked
        self._members: dict[str, _Member[K]] = {}
        self._whole_due_s = float("-inf")
        self._whole = build_whole(self._apply_whole)
        self._applied: int | None = None

    def poke(self) -> None:
        """Has the next exchanges made at once. From any thread."""
        self._poked.set()

    def forget(self, worker_id: str) -> None:
        """A worker has died: its shares are the others'. From any thread."""
        for one in (self._whole, *[member.limiter for member in list(self._members.values())]):
            one.forget(worker_id)

    def run(self, is_leaving: threading.Event) -> None:
        """Exchanges until no call is left at the end, and then gives the shares up. `poke` when `is_leaving` is set."""
        while not is_leaving.is_set():
            is_poked = self._poked.is_set()
            self._poked.clear()
            delay_s = self.tick(are_all_due=is_poked)
            is_leaving.wait(SHORTEST_S)
            self._poked.wait(max(0.0, delay_s - SHORTEST_S))
        for one in (*[member.limiter for member in self._members.values()], self._whole):
            one.end()

    def tick(self, *, are_all_due: bool = True) -> float:
        """The exchanges that are due. Seconds until the next one."""
        self._follow_keys()
        now_s = self._clock.monotonic_s()
        if are_all_due or now_s >= self._whole_due_s:
            self._whole_due_s = now_s + self._whole.turn()
        for member in list(self._members.values()):
            if are_all_due or now_s >= member.due_s:
                member.due_s = now_s + member.limiter.turn()
        if self._members:
            self._apply_keys()
        due_s = min((self._whole_due_s, *(one.due_s for one in self._members.values())))
        return max(0.0, min(_KEYS_EVERY_S, due_s - now_s))

    def _follow_keys(self) -> None:
        """A key that is new gets a limiter; one that is gone gives its share up once its calls have ended."""
        names = self._names()
        if len(names) < 2:
            if self._members:
                self._go_on_with_one()
            return
        wanted = {one.id: one for one in names}
        for key_id, member in list(self._members.items()):
            member.slot.is_gone = key_id not in wanted
            if member.slot.is_gone and not member.slot.in_flight:
                self._end(key_id)
        was_by_key = bool(self._members)
        for key_id, name in wanted.items():
            if key_id not in self._members:
                slot = self._keys.add(name)
                self._members[key_id] = _Member(self._build(slot, partial(self._keys.set_share, slot)), slot)
        if not was_by_key:
            self._applied = None
            self._whole.find_by_key(True)
            self._whole_due_s = float("-inf")

    def _go_on_with_one(self) -> None:
        """Of several keys one is left. Calls that are in flight with others go on."""
        self._whole.find_by_key(False)
        self._whole_due_s = self._clock.monotonic_s() + self._whole.turn()
        for key_id in list(self._members):
            self._end(key_id)
        self._apply(self._keys.most)

    def _end(self, key_id: str) -> None:
        self._members.pop(key_id).limiter.end()
        self._keys.remove(key_id)

    def _apply_whole(self, slots: int) -> None:
        self._keys.most = slots
        if not self._members:
            self._apply(slots)

    def _apply_keys(self) -> None:
        total = self._keys.total
        if total != self._applied:
            self._applied = total
            self._apply(total)
