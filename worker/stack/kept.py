"""A kept process: a child that is started, watched, started again with backoff when it ends by itself, and stopped."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from worker.errors import AntreanError
from worker.stack.child import Child

_RESTART_BASE_S = 0.5
_RESTART_CAP_S = 30.0
_HEALTHY_AFTER_S = 60.0  # a life that long was no failed start
_HURRY_LIMIT_S = 3.0
_FAILED_START_LIMIT_S = 1.0

# Starts a child, hands it to the given callable before the next await, and returns when it is ready. Raises
# AntreanError or OSError where it does not become so.
Launch = Callable[[Callable[[Child], Child]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class End:
    """The end of one life of a kept process that nobody asked to end.

    `status` is as in `subprocess`: an exit code, or minus a signal's number; None: it could not be started.
    `reason` says the same in words. `restarts_in_s` None: it is not started again.
    """

    status: int | None
    reason: str
    restarts_in_s: float | None


def decide_restart_delay_s(failures: int) -> float:
    """Seconds to wait after the `failures`-th early end in a row (0-based): 0.5, 1, 2 … 30."""
    return min(_RESTART_CAP_S, _RESTART_BASE_S * 2.0 ** min(failures, 10))


def describe_status(status: int | None) -> str:
    """How a process ended, in words: `exit code 3`, `signal 9, SIGKILL`."""
    if status is None:
        return "it could not be started"
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {-status}, {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


class KeptProcess:
    """One child process at a time, from `start` or `begin` until `stop`.

    `report` is told of each end that nobody asked for, before the wait for the next start. `read_rest` is awaited
    after an end and before its report: the child's last output may still be on its way. With `is_restarted` off the
    first end is the last.
    """

    def __init__(
        self,
        name: str,
        launch: Launch,
        report: Callable[[End], None],
        *,
        stop_limit_s: float,
        is_restarted: bool = True,
        read_rest: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self.child: Child | None = None
        # Wall clock of the present life, to tell its row in the ledger from an older one's.
        self.started_at_s = 0.0
        self.restart_count = 0
        self._launch = launch
        self._report = report
        self._stop_limit_s = stop_limit_s
        self._is_restarted = is_restarted
        self._read_rest = read_rest
        self._keeping: asyncio.Task[None] | None = None

    @property
    def is_alive(self) -> bool:
        return self.child is not None and self.child.status is None

    async def start(self) -> None:
        """Returns when it is ready; from then on it is kept. Raises AntreanError if the first start fails."""
        await self._launch(self._adopt)
        self._keeping = asyncio.create_task(self._keep(is_running=True))

    def begin(self) -> None:
        """Has it started and kept, and returns at once: a first start that fails is an end like any other."""
        self._keeping = asyncio.create_task(self._keep(is_running=False))

    def reap(self) -> None:
        """Notices its end. Called on SIGCHLD."""
        if self.child is not None:
            self.child.reap()

    async def stop(self, *, is_hurried: bool = False) -> None:
        """Returns when it is over and is not started again."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self.child is None:
            return
        if is_hurried:
            await self.child.stop(_HURRY_LIMIT_S, signal.SIGQUIT)
        else:
            await self.child.stop(self._stop_limit_s)

    def hurry(self) -> None:
        """Shortens a stop under way: a cold shutdown now, SIGKILL to its group in 3 s."""
        if self.child is not None and not self.child.reap():
            self.child.send(signal.SIGQUIT)
            asyncio.get_running_loop().call_later(_HURRY_LIMIT_S, self.child.kill_unless_over)

    def _adopt(self, child: Child) -> Child:
        """From its first moment the child is this process's, so that a stop in the middle of a launch finds it."""
        self.child = child
        self.started_at_s = time.time()
        return child

    async def _keep(self, *, is_running: bool) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            status, reason = await self._live(is_running=is_running)
            is_running = False
            if loop.time() - began_s >= _HEALTHY_AFTER_S:
                failures = 0
            delay_s = decide_restart_delay_s(failures) if self._is_restarted else None
            failures += 1
            self._report(End(status, reason, delay_s))
            if delay_s is None:
                return
            await asyncio.sleep(delay_s)
            self.restart_count += 1

    async def _live(self, *, is_running: bool) -> tuple[int | None, str]:
        """One life, to its end: the status, and how it ended in words."""
        if not is_running:
            try:
                await self._launch(self._adopt)
            except (AntreanError, OSError) as exc:
                if self.is_alive and self.child is not None:
                    await self.child.stop(_FAILED_START_LIMIT_S)  # started, and never ready
                return None, str(exc)
        assert self.child is not None, "a launch hands its child over"
        await self.child.ended.wait()
        if self._read_rest is not None:
            await self._read_rest()
        return self.child.status, describe_status(self.child.status)
