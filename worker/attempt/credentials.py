"""The keys of a process and the header style that works with each, shared by all slots."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cache

from api_client.config import Credential, HeaderStyle
from worker.attempt.keys import Key, name_keys, open_source
from worker.clock import Clock
from worker.settings import Settings
from worker.startup import say
from worker.throttle.store import KeyName


@dataclass(slots=True)
class _Style:
    """What is known of the header style of one key. While none has worked, `refused` has those that were tried."""

    style: HeaderStyle
    is_proven: bool
    refused: set[HeaderStyle] = field(default_factory=set)


class Credentials:
    """Hands out the credentials of the moment. Learns the header style of each key. Asks for the keys again."""

    def __init__(self, settings: Settings, identity: str = "", clock: Clock | None = None) -> None:
        """`identity`: that of the ledger, with which the ids of keys are made.

        Raises SettingsError where the file of the keys holds none.
        """
        self._lock = threading.Lock()
        self._identity = identity
        self.setting, self._source = open_source(settings, clock)
        self._is_auto = settings.auth_style == "auto"
        # With which a key begins whose style is not known: one endpoint mostly wants one style.
        self._first_style = HeaderStyle.API_KEY if settings.auth_style == "api-key" else HeaderStyle.BEARER
        self._styles: dict[str, _Style] = {}
        self._keys: dict[str, Key] = {}
        self._named: tuple[tuple[str, ...] | None, tuple[KeyName, ...]] = (None, ())
        has_key = settings.api_key_command is not None or bool(self._source.known())
        if settings.address_file is not None and has_key:
            _say_once(
                f"your key, from the environment, goes to {settings.base_url}, which {settings.address_file} says"
            )

    def names(self) -> tuple[KeyName, ...]:
        """The keys that are known now, in their order; one that stands for none where there is none.

        A file that has changed is read again. Waits for nothing.
        """
        return self._name(self._source.known())

    def fetch_names(self) -> tuple[KeyName, ...]:
        """The same, after a command has been run that must be. Raises KeyUnavailable where it gives no key."""
        return self._name(self._source.current())

    def reread(self, *, sent_s: float) -> tuple[KeyName, ...]:
        """The keys after one that was sent at `sent_s` (monotonic) was refused: file and command are asked again.

        Raises KeyUnavailable.
        """
        return self._name(self._source.reread(sent_s))

    def stop(self) -> None:
        """Ends a command that runs, and lets none begin: this process ends."""
        self._source.stop()

    def get(self, name: KeyName | None) -> Credential | None:
        """What to send with this key now; None if it was replaced."""
        with self._lock:
            key = None if name is None else self._keys.get(name.id)
            return None if key is None else self._make(key)

    def fetch(self) -> list[Credential]:
        """What to send with each key, in their order. Raises KeyUnavailable."""
        self.fetch_names()
        with self._lock:
            return [self._make(key) for key in self._keys.values()]

    def find_place(self, credential: Credential) -> str:
        """Where its key comes from, for people."""
        with self._lock:
            key = self._keys.get(credential.key_id)
            return self.setting if key is None else key.name.place

    def other_style(self, refused: Credential) -> Credential | None:
        """The same key in the other header, where the style is `auto` and another slot has learned that it works, or
        none has worked yet.

        Each style is tried once with a call that was refused. From then on each call tries one, in turn: a wrong key
        makes one call at a probe.
        """
        with self._lock:
            known = self._find_style(refused.key_id)
            other = _other(refused.style)
            if refused.key is None or (known.is_proven and known.style is not other):
                return None
            if known.is_proven:
                return Credential(refused.key, other, refused.key_id)
            is_new = other not in known.refused
            known.refused.add(refused.style)
            known.style = other
            return Credential(refused.key, other, refused.key_id) if is_new else None

    def worked(self, credential: Credential) -> None:
        """Remembers the header style of a call that was let in."""
        known = self._styles.get(credential.key_id)
        if known is None or known.is_proven:
            return
        with self._lock:
            known.style = credential.style
            known.is_proven = True
            self._first_style = credential.style

    def _name(self, secrets: tuple[str, ...]) -> tuple[KeyName, ...]:
        known, names = self._named  # without a lock: each call asks for it
        if known == secrets:
            return names
        with self._lock:
            keys = name_keys(secrets, setting=self.setting, identity=self._identity)
            self._keys = {key.name.id: key for key in keys}
            self._named = secrets, tuple(self._keys[key_id].name for key_id in self._keys)
            return self._named[1]

    def _make(self, key: Key) -> Credential:
        return Credential(key.secret, self._find_style(key.name.id).style, key.name.id)

    def _find_style(self, key_id: str) -> _Style:
        found = self._styles.get(key_id)
        if found is None:
            found = self._styles[key_id] = _Style(self._first_style, is_proven=not self._is_auto)
        return found


@cache
def _say_once(sentence: str) -> None:
    """A folder may come from anywhere, with an address of somebody's choice in it."""
    say(sentence)


def _other(style: HeaderStyle) -> HeaderStyle:
    return HeaderStyle.API_KEY if style is HeaderStyle.BEARER else HeaderStyle.BEARER
