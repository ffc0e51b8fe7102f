"""A service of the stack: a child process that is started again, with backoff, when it dies by itself."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable

from worker.errors import AntreanError
from worker.stack.child import Child

_RESTART_BASE_S = 0.5
_RESTART_CAP_S = 30.0
_HEALTHY_AFTER_S = 30.0
_HURRY_LIMIT_S = 3.0

# Starts a child, hands it to the given callable before anything is awaited, returns when it is ready.
Launch = Callable[[Callable[[Child], Child]], Awaitable[None]]

log = logging.getLogger("antrean.keeper")


class Service:
    """A kept child process.

    `launch` starts one, hands it over at once and returns when it is ready. `announce` is told
    `(name, status)` of each death that nobody asked for; status is as in `subprocess`, negative for a signal.
    """

    def __init__(
        self,
        name: str,
        fingerprint: str,
        launch: Launch,
        announce: Callable[[str, int | None], None],
        *,
        is_revived: bool,
        stop_limit_s: float,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.child: Child | None = None
        self.restart_count = 0
        self._launch = launch
        self._announce = announce
        self._is_revived = is_revived
        self._stop_limit_s = stop_limit_s
        self._supervision: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when it is ready. Raises AntreanError if it does not become so."""
        await self._launch(self._adopt)
        self._supervision = asyncio.create_task(self._supervise())

    @property
    def is_alive(self) -> bool:
        return self.child is not None and self.child.status is None

    async def stop(self, *, is_hurried: bool) -> None:
        if self._supervision is not None:
            self._supervision.cancel()
        if self.child is None:
            return
        if is_hurried:
            await self.child.stop(_HURRY_LIMIT_S, signal.SIGQUIT)
        else:
            await self.child.stop(self._stop_limit_s)
        log.info("service.stopped service=%s status=%s", self.name, self.child.status)

    def hurry(self) -> None:
        """Shorten a stop under way: a cold shutdown now, SIGKILL to its group in 3 s."""
        if self.child is not None and not self.child.reap():
            self.child.send(signal.SIGQUIT)
            asyncio.get_running_loop().call_later(_HURRY_LIMIT_S, self.child.kill_unless_over)

    def _adopt(self, child: Child) -> Child:
        """From its first moment a child belongs to its service, so that a stop in mid-launch finds it."""
        self.child = child
        log.info("service.started service=%s pid=%d", self.name, child.pid)
        return child

    async def _supervise(self) -> None:
        delay_s = _RESTART_BASE_S
        started = time.monotonic()
        while self.child is not None:
            await self.child.ended.wait()
            log.warning("service.died service=%s status=%s", self.name, self.child.status)
            self._announce(self.name, self.child.status)
            if not self._is_revived:
                return
            if time.monotonic() - started >= _HEALTHY_AFTER_S:
                delay_s = _RESTART_BASE_S
            await asyncio.sleep(delay_s)
            delay_s = min(_RESTART_CAP_S, delay_s * 2)
            self.restart_count += 1
            started = time.monotonic()
            try:
                await self._launch(self._adopt)
            except (AntreanError, OSError) as exc:
                log.error("service.restart_failed service=%s error=%s", self.name, exc)
