"""The slots of an endpoint by the key with which calls are made, where it has several.

Each key has a limit of its own, and this worker a share of each. A job gets its key with its slot: one whose share has
room. With one key nothing of this is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from worker.policy.key_room import KeyRoom, rank_by_room, sum_limits
from worker.throttle.gatekeeper import Permit
from worker.throttle.meter import Meter
from worker.throttle.store import KeyName


class KeyedSlots(Protocol):
    """The slots at the endpoint, of all keys. `keys`: None while there is one key."""

    keys: KeySlots | None

    @property
    def lock(self) -> threading.Condition: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def permits(self) -> int | None: ...
    def count_waiting(self) -> int: ...


class KeyUser(Protocol):
    """A job. `hold`: its slot at a key; None where the endpoint has one key."""

    hold: KeyHold | None


class KeySlot:
    """The slots of one key, as its limiter sees them. Guarded by the lock of the slots."""

    def __init__(self, name: KeyName, keys: KeySlots, *, is_open: Callable[[], bool]) -> None:
        self.name = name
        self.meter = Meter()
        self.share = 0
        self.in_flight = 0
        self.epoch = 0  # as `Slots.epoch`
        self.valid_until_s = float("inf")  # as `Slots.valid_until_s`
        self.is_gone = False  # the key was replaced
        self._keys = keys
        self._is_open = is_open

    @property
    def is_open(self) -> bool:
        """Whether calls may be made with this key, as far as is known."""
        return not self.is_gone and self._is_open()

    @property
    def demand(self) -> int:
        """Calls in flight with this key, and jobs that could be called with it. Its gate shut: none could."""
        return self.in_flight + (self._keys.count_jobs() if self.is_open else 0)

    @property
    def permits(self) -> int | None:
        """None: rates are of the endpoint, and not of a key."""
        return None

    @property
    def startable(self) -> int:
        return 0

    @property
    def begun(self) -> int:
        return 0

    def grant(self, permits: int | None) -> None:
        """Nothing: see `permits`."""

    def take_permits(self, count: int) -> int:
        return 0

    def look(self, now_s: float) -> KeyRoom:
        """What it allows now."""
        return KeyRoom(self.share, self.in_flight, self.is_open, now_s >= self.valid_until_s)


class KeyHold:
    """The slot of one call at one key. The call may go on with another key, and has a slot there then."""

    __slots__ = ("_has_left", "_keys", "_slot", "epoch")

    def __init__(self, keys: KeySlots, slot: KeySlot) -> None:
        self._keys = keys
        self._slot: KeySlot | None = slot
        self._has_left = False
        self.epoch = slot.epoch

    def rank(self, usable: Sequence[KeyName]) -> Iterator[KeyName]:
        """Those of these keys that have room for the call: the one that it has, and then the others."""
        own = None if self._slot is None else self._slot.name.id
        yield from (one for one in usable if one.id == own)
        yield from (one for one in self._keys.rank(usable) if one.id != own)

    def take(self, name: KeyName, *, is_probe: bool = False) -> bool:
        """Moves the call to this key. False: it has no room; a probe needs none."""
        with self._keys.lock:
            if self._slot is not None and self._slot.name.id == name.id:
                return True
            found = self._keys.find(name)
            if not is_probe and (found is None or not self._keys.has_room_at(found)):
                return False
            if not self._has_left:
                self._count(-1)
                self._slot = found
                self._count(1)
            self.epoch = 0 if found is None else found.epoch
            return True

    def leave(self) -> None:
        """The call has ended."""
        with self._keys.lock:
            if not self._has_left:
                self._has_left = True
                self._count(-1)

    def note_answer(self, permit: Permit, *, latency_s: float, tokens: int, tokens_out: int) -> None:
        """As `Meter.note_answer`, for the key with which the call was made."""
        if self._slot is not None:
            self._slot.meter.note_answer(permit, latency_s=latency_s, tokens=tokens, tokens_out=tokens_out)

    def note_failure(self, permit: Permit, *, is_refusal: bool) -> None:
        """As `Meter.note_failure`, for the key with which the call was made."""
        if self._slot is not None:
            self._slot.meter.note_failure(permit, is_refusal=is_refusal)

    def _count(self, calls: int) -> None:
        if self._slot is not None:
            self._slot.in_flight += calls


class KeySlots:
    """The slots of one endpoint by key. `most`: the calls at once that all keys may have together in this worker."""

    def __init__(
        self,
        slots: KeyedSlots,
        *,
        is_open: Callable[[KeyName], bool],
        on_unknown: Callable[[], None],
        monotonic_s: Callable[[], float],
    ) -> None:
        """`is_open`: whether no gate keeps calls from the key. `on_unknown` is told of a key that has no slots yet."""
        self.most = 0
        self._slots = slots
        self._is_open = is_open
        self._on_unknown = on_unknown
        self._monotonic_s = monotonic_s
        self._of_key: dict[str, KeySlot] = {}
        self._turn = 0

    @property
    def lock(self) -> AbstractContextManager[object]:
        return self._slots.lock

    @property
    def total(self) -> int:
        """The calls at once that the keys allow this worker together."""
        with self.lock:
            now_s = self._monotonic_s()
            return sum_limits([one.look(now_s) for one in self._of_key.values()], most=self.most)

    def add(self, name: KeyName) -> KeySlot:
        """Slots for a new key; those that it had, where it is back before its calls have ended."""
        with self.lock:
            found = self._of_key.get(name.id)
            if found is None:
                found = KeySlot(name, self, is_open=lambda: self._is_open(name))
                self._of_key[name.id] = found
            found.is_gone = False
            self._slots.keys = self
            return found

    def remove(self, key_id: str) -> None:
        """Forgets a key."""
        with self.lock:
            self._of_key.pop(key_id, None)
            if not self._of_key:
                self._slots.keys = None

    def set_share(self, slot: KeySlot, share: int) -> None:
        with self.lock:
            slot.share = share

    def count_jobs(self) -> int:
        """Jobs without a slot that could be called now, but for the limit of a key."""
        with self.lock:
            permits = self._slots.permits
            waiting = min(self._slots.count_waiting(), self.most - self._slots.in_flight)
            return max(0, waiting if permits is None else min(waiting, permits))

    # With the lock held. ----------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether a call may begin with one of the keys."""
        now_s = self._monotonic_s()
        return bool(rank_by_room([one.look(now_s) for one in self._of_key.values()]))

    def give(self, one: KeyUser, *, is_sure: bool = False) -> bool:
        """Gives the job a slot of a key. False: none has room. With `is_sure` it has one in any case."""
        now_s = self._monotonic_s()
        slots = list(self._of_key.values())
        ranked = rank_by_room([slot.look(now_s) for slot in slots], turn=self._turn)
        if not ranked and not is_sure:
            return False
        chosen = slots[ranked[0] if ranked else 0]
        self._turn += 1
        chosen.in_flight += 1
        one.hold = KeyHold(self, chosen)
        return True

    # Without it. ------------------------------------------------------------------------------------------------

    def find(self, name: KeyName) -> KeySlot | None:
        """The slots of a key; None: they do not exist yet, and will soon."""
        found = self._of_key.get(name.id)
        if found is None:
            self._on_unknown()
        return found

    def has_room_at(self, slot: KeySlot) -> bool:
        """Whether a call may begin with this key."""
        room = slot.look(self._monotonic_s())
        return not room.is_held and room.in_flight < room.share

    def rank(self, names: Sequence[KeyName]) -> list[KeyName]:
        """Those of these keys that have room, the emptiest first."""
        with self.lock:
            now_s = self._monotonic_s()
            known = [(name, slot) for name in names if (slot := self.find(name)) is not None]
            self._turn += 1
            ranked = rank_by_room([slot.look(now_s) for _, slot in known], turn=self._turn)
            return [known[at][0] for at in ranked]
