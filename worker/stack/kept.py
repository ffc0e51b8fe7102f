"""A kept process: a child process that is started again, with backoff, when it ends by itself."""

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
_HEALTHY_AFTER_S = 60.0  # after that long a run counts as a success, and the backoff begins anew
_HURRY_LIMIT_S = 3.0
_FAILED_START_LIMIT_S = 1.0

# Starts a child, passes it to the given callable before the next await, and returns when the child is ready. Raises
# AntreanError or OSError if it does not become ready.
Launch = Callable[[Callable[[Child], Child]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class End:
    """The end of one run of a kept process that was not asked to stop.

    `status` is as in `subprocess`: an exit code, or minus a signal's number; None: it could not be started.
    `reason` describes the same. `restarts_in_s`: seconds to the next start; None: it is not started again.
    """

    status: int | None
    reason: str
    restarts_in_s: float | None


def decide_restart_delay_s(failures: int) -> float:
    """Seconds to wait before the next start, after the `failures`-th early end in a row (0-based): 0.5, 1, 2 … 30."""
    return min(_RESTART_CAP_S, _RESTART_BASE_S * 2.0 ** min(failures, 10))


def describe_status(status: int | None) -> str:
    """Describes how a process ended: `exit code 3`, `signal 9, SIGKILL`."""
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

    `report` is called for each end that was not asked for, before the wait for the next start. `read_rest` is awaited
    before `report`: the child's last output may still be in its pipe. If `is_restarted` is False, the process is not
    started again.
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
        # When the present run began, by the wall clock. It identifies the run's row in the ledger among older ones.
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
        """Starts it, and returns when it is ready. Raises AntreanError if the first start fails."""
        await self._launch(self._adopt)
        self._keeping = asyncio.create_task(self._keep(is_running=True))

    def begin(self) -> None:
        """Starts it in the background, and returns at once. A first start that fails is reported as an end."""
        self._keeping = asyncio.create_task(self._keep(is_running=False))

    def reap(self) -> None:
        """Notices its end. Called on SIGCHLD."""
        if self.child is not None:
            self.child.reap()

    async def stop(self, *, is_hurried: bool = False) -> None:
        """Stops it, and returns when it has ended. It is not started again."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self.child is None:
            return
        if is_hurried:
            await self.child.stop(_HURRY_LIMIT_S, signal.SIGQUIT)
        else:
            await self.child.stop(self._stop_limit_s)

    def hurry(self) -> None:
        """Shortens a stop that is under way: a cold shutdown now, SIGKILL to its process group in 3 s."""
        if self.child is not None and not self.child.reap():
            self.child.send(signal.SIGQUIT)
            asyncio.get_running_loop().call_later(_HURRY_LIMIT_S, self.child.kill_unless_over)

    def _adopt(self, child: Child) -> Child:
        """Stores the child as soon as it is started, so that a stop during the launch finds it."""
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
        """Starts the process unless it `is_running`, and waits for its end: the status, and a description of it."""
        if not is_running:
            try:
                await self._launch(self._adopt)
            except (AntreanError, OSError) as exc:
                if self.is_alive and self.child is not None:
                    await self.child.stop(_FAILED_START_LIMIT_S)  # it was started, and did not become ready
                return None, str(exc)
        assert self.child is not None, "a launch passes its child to _adopt"
        await self.child.ended.wait()
        if self._read_rest is not None:
            await self._read_rest()
        return self.child.status, describe_status(self.child.status)
