"""The key and the header style that work, shared by all slots of a process."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

from api_client.config import Credential, HeaderStyle
from worker.errors import SettingsError
from worker.settings import AuthStyle, Settings, check_api_key
from worker.startup import say


class Credentials:
    """Hands out the credential of the moment; learns the header style; reads a key file again on demand."""

    def __init__(self, settings: Settings) -> None:
        self._lock = threading.Lock()
        self._style_setting: AuthStyle = settings.auth_style
        self._file = settings.api_key_file
        self._key = _read_key(settings)
        self._style = HeaderStyle.API_KEY if settings.auth_style == "api-key" else HeaderStyle.BEARER
        self._is_style_proven = settings.auth_style != "auto"
        if settings.address_file is not None and self._key is not None:
            _say_once(
                f"your key, from the environment, goes to {settings.base_url}, which {settings.address_file} says"
            )

    def current(self) -> Credential:
        """What to send now."""
        with self._lock:
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
        with self._lock:
            if self._file is not None:
                try:
                    self._key = read_key_file(self._file)
                except SettingsError:
                    return self._key != refused.key  # being rewritten just now; the old key stays
            changed = self._key != refused.key
            if changed and self._style_setting == "auto":
                self._is_style_proven = False
            return changed


def read_key_file(path: Path) -> str:
    """The key in `path`, without the white space around it. Raises SettingsError with a sentence."""
    try:
        key = path.read_text(encoding="utf-8").strip()
        check_api_key(key)
    except OSError as exc:
        raise SettingsError([f"ANTREAN_API_KEY_FILE: {path} cannot be read ({exc.strerror})"]) from exc
    except ValueError as exc:
        raise SettingsError([f"ANTREAN_API_KEY_FILE: the key in {path} {exc}"]) from None
    return key


def _read_key(settings: Settings) -> str | None:
    if settings.api_key_file is not None:
        return read_key_file(settings.api_key_file)
    return None if settings.api_key is None else settings.api_key.get_secret_value()


@cache
def _say_once(sentence: str) -> None:
    """A folder may come from anywhere, with an address of somebody's choice in it."""
    say(sentence)


def _other(style: HeaderStyle) -> HeaderStyle:
    return HeaderStyle.API_KEY if style is HeaderStyle.BEARER else HeaderStyle.BEARER
