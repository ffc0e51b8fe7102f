"""Stores for the state of a gate: the protocol, and a store in memory for tests and for a broker that is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from worker.policy.gates import MOST_PROBES, Gate, next_probe_after_s
from worker.policy.half_open import next_trial_after_s

ACCEPTED_S = 120
USED_S = (
    15  # a key that no worker has named for so long is not in use any more: workers name theirs every 4 s
)


@dataclass(frozen=True, slots=True)
class KeyName:
    """The name of a key, which does not tell it: its id, and the place it comes from."""

    id: str
    place: str


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key that a live worker uses. It is set aside while its `gate` is shut; None: it is open."""

    name: KeyName
    gate: Gate | None


class GateStore(Protocol):
    """The gate of one endpoint, or of one of its keys.

    Methods do not raise if the store is away: they fail open, and count that.
    """

    def fetch(self) -> Gate | None:
        """The gate, or None when it is open."""

    def put(self, gate: Gate, *, only_if_shut: bool = False) -> None:
        """Shuts the gate. With `only_if_shut`, a gate that was opened meanwhile stays open."""

    def clear(self, token: str | None = None) -> bool:
        """Opens the gate and ends all probes. With a probe's token, only if that probe has not ended; else False."""

    def clear_all(self) -> None:
        """Opens this gate and those of all known keys, and ends all of their probes."""

    def take_probe(
        self, *, ttl_s: float, token: str = "probe", now_ms: int | None = None, is_trial: bool = False
    ) -> bool:
        """Begins a probe under `token`, for at most `ttl_s` seconds. False: none may begin now.

        One probe at a time; while it has no answer, another one every few seconds, at most `MOST_PROBES` at once.
        `is_trial`: the gate is half open, and a few may begin side by side.
        """

    def answer_probe(self, token: str, *, needed: int) -> bool | None:
        """Ends a probe that was answered: True if the gate is open now, with `needed` answers; False if half open.

        None: that probe had ended before, and nothing changes.
        """

    def leave_probe(self, token: str | None = None) -> None:
        """Ends the probe of that token. None ends all probes."""

    def of_key(self, name: KeyName) -> GateStore:
        """The gate of one key of this endpoint."""

    def note_used(self, names: Sequence[KeyName], *, replaced: Sequence[KeyName] = ()) -> None:
        """Notes that a live worker uses these keys, and `replaced` ones no more. To be repeated within `USED_S`."""

    def fetch_keys(self) -> list[KeyState]:
        """The keys that live workers use, by their places."""

    def note_accepted(self) -> None:
        """Notes that the endpoint has accepted the key just now, in a request without a job."""

    def was_accepted(self) -> bool:
        """Whether `note_accepted` was called in the last two minutes."""


class MemoryGateStore:
    """The gate of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gate: Gate | None = None
        self._probes: dict[str, int] = {}  # token to the probe's start, ms
        self._accepted_s = float("-inf")
        self._keys: dict[str, MemoryGateStore] = {}  # by the key's id
        self._used: tuple[KeyName, ...] = ()

    def fetch(self) -> Gate | None:
        with self._lock:
            return self._gate

    def put(self, gate: Gate, *, only_if_shut: bool = False) -> None:
        with self._lock:
            if self._gate is not None or not only_if_shut:
                self._gate = gate

    def clear(self, token: str | None = None) -> bool:
        with self._lock:
            if token is not None and token not in self._probes:
                return False
            self._gate = None
            self._probes.clear()
            return True

    def clear_all(self) -> None:
        for one in (self, *list(self._keys.values())):
            one.clear()

    def take_probe(
        self, *, ttl_s: float, token: str = "probe", now_ms: int | None = None, is_trial: bool = False
    ) -> bool:
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        with self._lock:
            live = [at for at in self._probes.values() if now_ms - ttl_s * 1000 < at < now_ms + 1000]
            if len(live) >= MOST_PROBES:
                return False
            after_s = (next_trial_after_s if is_trial else next_probe_after_s)(len(live))
            if live and now_ms - max(live) < after_s * 1000:
                return False
            self._probes[token] = now_ms
            return True

    def answer_probe(self, token: str, *, needed: int) -> bool | None:
        with self._lock:
            if self._probes.pop(token, None) is None:
                return None
            if self._gate is None or self._gate.answered + 1 >= needed:
                self._gate = None
                self._probes.clear()
                return True
            self._gate = replace(self._gate, answered=self._gate.answered + 1)
            return False

    def leave_probe(self, token: str | None = None) -> None:
        with self._lock:
            if token is None:
                self._probes.clear()
            else:
                self._probes.pop(token, None)

    def of_key(self, name: KeyName) -> MemoryGateStore:
        with self._lock:
            return self._keys.setdefault(name.id, MemoryGateStore())

    def note_used(self, names: Sequence[KeyName], *, replaced: Sequence[KeyName] = ()) -> None:
        with self._lock:
            self._used = tuple(dict.fromkeys(one for one in (*self._used, *names) if one not in replaced))

    def fetch_keys(self) -> list[KeyState]:
        return [KeyState(name, self.of_key(name).fetch()) for name in self._used]

    def note_accepted(self) -> None:
        self._accepted_s = time.monotonic()

    def was_accepted(self) -> bool:
        return time.monotonic() - self._accepted_s < ACCEPTED_S
