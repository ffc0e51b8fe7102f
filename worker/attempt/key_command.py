"""A command that prints the key: run when its key is needed, refused, or about to end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from worker.attempt.printed_key import KeyProgram, NoKeyPrinted, PrintedKey
from worker.clock import Clock, SystemClock
from worker.errors import KeyUnavailable

log = structlog.get_logger(__name__)
_RENEWED_BEFORE_MS = 60_000  # its end, or a tenth of its life before
_LEAST_LIFE_MS = 30_000  # a key that ends sooner is not asked for again before it is that old
_TRIED_AGAIN_MS = (1_000, 2_000, 5_000, 10_000, 30_000, 60_000)  # after so many failures in a row


class KeyCommand:
    """The key that a command prints. Thread-safe: one run at a time, whose outcome all that waited for it share.

    A run that fails takes no key away: the last one stays, and the log says so once.
    """

    def __init__(
        self,
        run: Callable[[], PrintedKey],
        clock: Clock | None = None,
        *,
        stop: Callable[[], None] = lambda: None,
        setting: str = "ANTREAN_API_KEY_COMMAND",
    ) -> None:
        """`run` raises NoKeyPrinted. `stop` ends a run. `setting`: what names the command."""
        self._run = run
        self._setting = setting
        self.stop = stop
        self._clock = clock or SystemClock()
        self._runs = threading.Lock()  # held while the command runs
        self._key: str | None = None
        self._expires_at_ms: int | None = None
        self._renewed_at_ms: int | None = None  # when the command is run again, key or not
        self._began_s = self._ended_s = float("-inf")  # the latest run
        self._failures = 0
        self._why: str | None = None  # the latest run gave no key

    @classmethod
    def of_words(
        cls, words: Sequence[str], *, timeout_s: float, setting: str, clock: Clock | None = None
    ) -> KeyCommand:
        """The command of these words, which are started without a shell."""
        program = KeyProgram(words, timeout_s=timeout_s)
        return cls(program.run, clock, stop=program.stop, setting=setting)

    def known(self) -> tuple[str, ...]:
        """The key, if the command has given one."""
        return () if self._key is None else (self._key,)

    def current(self) -> tuple[str, ...]:
        """The key. Waits for the command where there is none, or it has ended. Raises KeyUnavailable."""
        now_ms = self._clock.now_ms()
        if self._key is None or (self._expires_at_ms is not None and now_ms >= self._expires_at_ms):
            self._renew(self._clock.monotonic_s(), waits=True)
        elif self._renewed_at_ms is not None and now_ms >= self._renewed_at_ms:
            self._renew(self._clock.monotonic_s(), waits=False)
        return self._get()

    def reread(self, sent_s: float) -> tuple[str, ...]:
        """The key, after one that was sent at `sent_s` was refused. A run since then is new enough.

        Raises KeyUnavailable.
        """
        self._renew(sent_s, waits=True, is_refused=True)
        return self._get()

    def _get(self) -> tuple[str, ...]:
        if self._key is None:
            raise KeyUnavailable(
                f"there is no key: {self._setting} {self._why}; run it in a shell to see what it says"
            )
        return (self._key,)

    def _renew(self, since_s: float, *, waits: bool, is_refused: bool = False) -> None:
        """Runs the command, but where another thread has done so since, or where it failed a moment ago.

        For a key that was refused a run must have begun since `since_s`; otherwise it may just have ended since.
        """
        if not self._runs.acquire(blocking=waits):
            return
        try:
            if (self._began_s if is_refused else self._ended_s) > since_s:
                return
            now_ms = self._clock.now_ms()
            if not is_refused and self._key is not None and now_ms < (self._renewed_at_ms or now_ms):
                return
            self._began_s = self._clock.monotonic_s()
            try:
                printed = self._run()
            except NoKeyPrinted as exc:
                self._note_failure(str(exc), now_ms)
            else:
                self._take(printed, now_ms)
            self._ended_s = self._clock.monotonic_s()
        finally:
            self._runs.release()

    def _take(self, printed: PrintedKey, now_ms: int) -> None:
        self._failures, self._why = 0, None
        self._expires_at_ms = self._renewed_at_ms = None
        ends_ms = printed.expires_at_ms
        if ends_ms is not None:
            before_ms = min(_RENEWED_BEFORE_MS, max(0, ends_ms - now_ms) // 10)
            self._renewed_at_ms = max(ends_ms - before_ms, now_ms + _LEAST_LIFE_MS)
            self._expires_at_ms = max(ends_ms, self._renewed_at_ms)
        self._key = printed.key

    def _note_failure(self, why: str, now_ms: int) -> None:
        wait_ms = _TRIED_AGAIN_MS[min(self._failures, len(_TRIED_AGAIN_MS) - 1)]
        self._failures += 1
        self._renewed_at_ms = now_ms + wait_ms
        if self._why != why:
            log.warning("key_command.failed", why=why, keeps_last_key=self._key is not None)
        self._why = why
