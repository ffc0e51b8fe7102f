"""A simulator in a thread, for tests in one process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.loop import new_event_loop
from api_client.simulator.simulator import Simulator

_Result = TypeVar("_Result")
_ANSWER_WITHIN_S = 10.0


class SimulatorThread:
    """Serves while its context is open. `url` is the base URL without `/v1`.

    with SimulatorThread(SimulatorConfig(latency_s=0.01)) as simulator:
        requests.get(simulator.url + "/v1/models")
    """

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        self._simulator = Simulator(SimulatorConfig(latency_s=0.0) if config is None else config)
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="simulator", daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.url = asyncio.run_coroutine_threadsafe(self._simulator.start(), self._loop).result(
                _ANSWER_WITHIN_S
            )
        except OSError:
            self._end()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._simulator.stop(), self._loop).result(_ANSWER_WITHIN_S)
        self._end()

    def stats(self) -> dict[str, Any]:
        """The counts of all chat calls."""
        return self._ask(self._simulator.stats)

    def calls(self, *, at_least: int = 0, paid_at_least: int = 0) -> dict[str, dict[str, int]]:
        """The counts of each job with at least so many received and paid calls, in the order of their first calls."""
        return self._ask(lambda: self._simulator.calls(at_least=at_least, paid_at_least=paid_at_least))

    def series(self, *, every: int = 10) -> list[dict[str, Any]]:
        """Counts over time: a row for `every` so many tenths of a second, the oldest first."""
        return self._ask(lambda: self._simulator.series(every=every))

    def set_faults(self, **changes: Any) -> None:
        """Changes options while it runs, as `Simulator.change`. Raises ValueError if a value is not valid."""
        self._ask(lambda: self._simulator.change(changes))

    def reset(self) -> None:
        """Sets the counts to zero."""
        self._ask(self._simulator.reset)

    def wait_for(
        self, is_reached: Callable[[dict[str, Any]], bool], timeout_s: float = 10.0
    ) -> dict[str, Any]:
        """Waits until `is_reached(stats)` is true, and returns the stats. Raises TimeoutError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not is_reached(stats := self.stats()):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the simulator did not get there in {timeout_s:g} s: {stats}")
            time.sleep(0.002)
        return stats

    def _ask(self, question: Callable[[], _Result]) -> _Result:
        async def ask() -> _Result:
            return question()

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(_ANSWER_WITHIN_S)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_ANSWER_WITHIN_S)
        self._loop.close()
