"""A file of keys: read again when it has changed. The last keys stay while the file holds none."""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from worker.clock import Clock, SystemClock
from worker.errors import SettingsError
from worker.settings import split_keys

log = structlog.get_logger(__name__)
_LOOK_EVERY_S = 1.0
_Mark = tuple[int, int, int, int, int]  # what of a file changes with its content: see `_mark`


class KeyFile:
    """The keys of a file, one a line. Thread-safe.

    A change is taken when two looks, a second apart, have found the same file: so a file that is just being written is
    not read halfway. A link that is swung to another file counts as a change.
    """

    def __init__(
        self, path: Path, clock: Clock | None = None, *, setting: str = "ANTREAN_API_KEY_FILE"
    ) -> None:
        """Reads the file. `setting`: what names it. Raises SettingsError with a sentence where it holds no key."""
        self._path = path
        self._setting = setting
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._read_mark = self._seen_mark = _mark(path)
        self._keys = read_key_file(path, setting)
        self._looked_at_s = self._clock.monotonic_s()
        self._is_told = False  # that the last keys are kept

    def known(self) -> tuple[str, ...]:
        """The keys. Looks at the file at most once a second, and waits for nobody who does."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_at_s >= _LOOK_EVERY_S and self._lock.acquire(blocking=False):
            try:
                self._look(now_s)
            finally:
                self._lock.release()
        return self._keys

    def current(self) -> tuple[str, ...]:
        return self.known()

    def reread(self, sent_s: float) -> tuple[str, ...]:
        """The keys, read from the file now: the endpoint has refused one of them."""
        with self._lock:
            self._read(_mark(self._path))
        return self._keys

    def stop(self) -> None:
        pass

    def _look(self, now_s: float) -> None:
        self._looked_at_s = now_s
        mark = _mark(self._path)
        if mark == self._read_mark:
            return
        if mark == self._seen_mark:
            self._read(mark)
        self._seen_mark = mark

    def _read(self, mark: _Mark | None) -> None:
        """Takes the keys of the file, if it holds any. `mark` was made before: a later look sees a later change."""
        try:
            self._keys = read_key_file(self._path, self._setting)
        except SettingsError as exc:
            if not self._is_told:
                self._is_told = True
                log.warning("key.kept", why="; ".join(exc.problems))
            return
        self._read_mark = mark
        self._is_told = False


def read_key_file(path: Path, setting: str) -> tuple[str, ...]:
    """The keys in `path`, one a line, without the white space around them. Raises SettingsError with a sentence."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise SettingsError([f"{setting}: {path} cannot be read ({exc.strerror})"]) from exc
    except UnicodeError:
        raise SettingsError([f"{setting}: {path} holds no text"]) from None
    if not text.strip():
        raise SettingsError([f"{setting}: {path} is empty"])
    try:
        return tuple(split_keys(text, "\n"))
    except ValueError as exc:
        raise SettingsError([f"{setting}: the key in {path} {exc}"]) from None


def _mark(path: Path) -> _Mark | None:
    """The file at the end of all links, and its state; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    # The time of the status, too: a copy that keeps the old time of the content, and a key of the same length.
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size
