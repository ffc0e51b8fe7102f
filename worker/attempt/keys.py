"""The keys of a process: where they come from, and the name of each that may be shown."""

from __future__ import annotations

import hashlib
import hmac
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from worker.attempt.key_command import KeyCommand
from worker.attempt.key_file import KeyFile
from worker.clock import Clock
from worker.settings import KEY_SETTINGS, Settings
from worker.throttle.store import KeyName


@dataclass(frozen=True, slots=True)
class Key:
    """A key (None: no header is sent), and its name."""

    secret: str | None = field(repr=False)
    name: KeyName


class KeySource(Protocol):
    """Where keys come from. Thread-safe."""

    def known(self) -> tuple[str, ...]:
        """The keys that are known now, in their order. Waits for nothing."""

    def current(self) -> tuple[str, ...]:
        """The keys; a command is run if it must be. Raises KeyUnavailable."""

    def reread(self, sent_s: float) -> tuple[str, ...]:
        """The keys as they are now, after one that was sent at `sent_s` (monotonic) was refused.

        Raises KeyUnavailable.
        """

    def stop(self) -> None:
        """Ends a command that runs: this process ends."""


class GivenKeys:
    """Keys that the environment gives. They never change."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(dict.fromkeys(keys))

    def known(self) -> tuple[str, ...]:
        return self._keys

    def current(self) -> tuple[str, ...]:
        return self._keys

    def reread(self, sent_s: float) -> tuple[str, ...]:
        return self._keys

    def stop(self) -> None:
        pass


def open_source(settings: Settings, clock: Clock | None) -> tuple[str, KeySource]:
    """The setting that says the keys, and where they come from. Raises SettingsError for a file without a key."""
    name = next((one for one in KEY_SETTINGS if getattr(settings, one) is not None), "api_key")
    setting = settings.describe_setting(name)
    if settings.api_key_command is not None:
        words = shlex.split(settings.api_key_command.get_secret_value())
        timeout_s = settings.api_key_command_timeout_s
        return setting, KeyCommand.of_words(words, timeout_s=timeout_s, setting=setting, clock=clock)
    if settings.api_key_file is not None:
        return setting, KeyFile(settings.api_key_file, clock, setting=setting)
    if settings.api_keys is not None:
        return setting, GivenKeys(settings.api_keys.get_secret_value().split(","))
    return setting, GivenKeys([] if settings.api_key is None else [settings.api_key.get_secret_value()])


def name_keys(keys: Sequence[str], *, setting: str, identity: str) -> tuple[Key, ...]:
    """The keys with their names. Without any, one that stands for having none: it has a gate as any other."""
    if not keys:
        return (Key(None, KeyName(make_key_id("", identity), f"no key of {setting}")),)
    return tuple(
        Key(
            key,
            KeyName(make_key_id(key, identity), setting if len(keys) == 1 else f"{setting}, key {number}"),
        )
        for number, key in enumerate(keys, 1)
    )


def make_key_id(key: str, identity: str) -> str:
    """A name for the key in logs and in the broker: 12 hexadecimal digits. It does not tell the key.

    It is made with the identity of the ledger, so that nobody who knows another ledger's names recognises a key.
    """
    return hmac.new(identity.encode(), key.encode(), hashlib.sha256).hexdigest()[:12]
