"""The key and the header style that work, shared by all slots of a process."""

from __future__ import annotations

import shlex
import threading
from functools import cache

from api_client.config import Credential, HeaderStyle
from worker.attempt.key_command import KeyCommand
from worker.attempt.key_file import KeyFile
from worker.clock import Clock
from worker.settings import AuthStyle, Settings
from worker.startup import say


class Credentials:
    """Hands out the credential of the moment; learns the header style; asks the key's file or command again."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        """Raises SettingsError where the key's file holds no key."""
        self._lock = threading.Lock()
        self._style_setting: AuthStyle = settings.auth_style
        self._file = None if settings.api_key_file is None else KeyFile(settings.api_key_file, clock)
        self._key = None if settings.api_key is None else settings.api_key.get_secret_value()
        if self._file is not None:
            self._key = self._file.current()
        self._command = _command_of(settings, clock)
        self._style = HeaderStyle.API_KEY if settings.auth_style == "api-key" else HeaderStyle.BEARER
        self._is_style_proven = settings.auth_style != "auto"
        if settings.address_file is not None and (self._key is not None or self._command is not None):
            _say_once(
                f"your key, from the environment, goes to {settings.base_url}, which {settings.address_file} says"
            )

    @property
    def place(self) -> str:
        """The setting that says what the key is."""
        if self._command is not None:
            return "ANTREAN_API_KEY_COMMAND"
        return "ANTREAN_API_KEY" if self._file is None else "ANTREAN_API_KEY_FILE"

    def current(self) -> Credential:
        """What to send now. A key file that has changed is read again; a command is run where its key is needed.

        Raises KeyUnavailable where the command gives none.
        """
        key = None
        if self._file is not None:
            key = self._file.current()
        elif self._command is not None:
            key = self._command.current()
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

    def reread(self, refused: Credential, *, sent_s: float) -> bool:
        """Whether there is another key now than the one that was sent at `sent_s` (monotonic) and refused.

        Reads the key file again; runs the command, but where it was run since then.
        """
        key = None
        if self._file is not None:
            key = self._file.reread()
        elif self._command is not None:
            key = self._command.reread(sent_s)
        with self._lock:
            if key is not None:
                self._take(key)
            return self._key != refused.key

    def _take(self, key: str) -> None:
        if key != self._key and self._style_setting == "auto":
            self._is_style_proven = False
        self._key = key


def _command_of(settings: Settings, clock: Clock | None) -> KeyCommand | None:
    if settings.api_key_command is None:
        return None
    words = shlex.split(settings.api_key_command.get_secret_value())
    return KeyCommand.of_words(words, timeout_s=settings.api_key_command_timeout_s, clock=clock)


@cache
def _say_once(sentence: str) -> None:
    """A folder may come from anywhere, with an address of somebody's choice in it."""
    say(sentence)


def _other(style: HeaderStyle) -> HeaderStyle:
    return HeaderStyle.API_KEY if style is HeaderStyle.BEARER else HeaderStyle.BEARER
