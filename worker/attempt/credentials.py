"""The key and the header style that work, shared by all slots of a process."""

from __future__ import annotations

import threading
from functools import cache

from api_client.config import Credential, HeaderStyle
from worker.attempt.key_file import KeyFile
from worker.clock import Clock
from worker.settings import AuthStyle, Settings
from worker.startup import say


class Credentials:
    """Hands out the credential of the moment; learns the header style; reads a key file again when it has changed."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        """Raises SettingsError where the key's file holds no key."""
        self._lock = threading.Lock()
        self._style_setting: AuthStyle = settings.auth_style
        self._file = None if settings.api_key_file is None else KeyFile(settings.api_key_file, clock)
        self._key = None if settings.api_key is None else settings.api_key.get_secret_value()
        if self._file is not None:
            self._key = self._file.current()
        self._style = HeaderStyle.API_KEY if settings.auth_style == "api-key" else HeaderStyle.BEARER
        self._is_style_proven = settings.auth_style != "auto"
        if settings.address_file is not None and self._key is not None:
            _say_once(
                f"your key, from the environment, goes to {settings.base_url}, which {settings.address_file} says"
            )

    def current(self) -> Credential:
        """What to send now. A key file that has changed is read again."""
        key = None if self._file is None else self._file.current()
        with self._lock:
            if key is not None:
                self._take(key)
            return Credential(key=self._key, style=self._style)

    def other_style(self, tried: Credential) -> Credential | None:
        """The same key in the other header, where the style is `auto` and none has worked yet."""
        with self._lock:
            if self._is_style_proven or tried.key is None:
                return None
            return Credential(key=tried.key, style=_other(tried.style))

    def worked(self, credential: Credential) -> None:
        """Remembers the header style of a call that was let in."""
        if self._is_style_proven:
            return
        with self._lock:
            self._style = credential.style
            self._is_style_proven = True

    def reread(self, refused: Credential) -> bool:
        """Whether there is another key now than the one that was refused. Reads the key file again."""
        key = None if self._file is None else self._file.reread()
        with self._lock:
            if key is not None:
                self._take(key)
            return self._key != refused.key

    def _take(self, key: str) -> None:
        if key != self._key and self._style_setting == "auto":
            self._is_style_proven = False
        self._key = key


@cache
def _say_once(sentence: str) -> None:
    """A folder may come from anywhere, with an address of somebody's choice in it."""
    say(sentence)


def _other(style: HeaderStyle) -> HeaderStyle:
    return HeaderStyle.API_KEY if style is HeaderStyle.BEARER else HeaderStyle.BEARER
