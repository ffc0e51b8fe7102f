"""Changes of a simulator's options while it runs: asked for, passing, and by a timetable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.timetable import Step


class Changes:
    """Keeps the configuration that holds now, and calls `apply` with each new one. On the running event loop."""

    def __init__(self, config: SimulatorConfig, apply: Callable[[SimulatorConfig], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._apply = apply
        self._current = config
        self._before: SimulatorConfig | None = None  # what a passing change goes back to
        self._revert_timer: asyncio.TimerHandle | None = None
        self._step_timers: list[asyncio.TimerHandle] = []
        self._play(config.timetable)

    def change(self, changes: Mapping[str, Any]) -> SimulatorConfig:
        """The configuration from now on. Raises ValueError with a sentence if a value is not valid.

        With `for_s` among the changes, they are undone after so many seconds, or at the next change. A `timetable`
        counts from now on, in place of the one before.
        """
        options = dict(changes)
        for_s = options.pop("for_s", None)
        if for_s is not None and (
            isinstance(for_s, bool) or not isinstance(for_s, int | float) or for_s <= 0
        ):
            raise ValueError(f"for_s must be a number above 0, not {for_s!r}")
        if for_s is not None and "timetable" in options:
            raise ValueError(
                "timetable and for_s cannot be combined: the timetable says when each change ends"
            )
        before = self._current if self._before is None else self._before
        after = before.changed(options)
        if self._revert_timer is not None:
            self._revert_timer.cancel()
            self._revert_timer = self._before = None
        self._set(after)
        if "timetable" in options:
            self._stop_timetable()
            self._play(after.timetable)
        if for_s is not None:
            self._before = before
            self._revert_timer = self._loop.call_later(for_s, self._revert)
        return after

    def close(self) -> None:
        """Nothing changes by itself any more."""
        self._stop_timetable()
        if self._revert_timer is not None:
            self._revert_timer.cancel()

    def _set(self, config: SimulatorConfig) -> None:
        self._current = config
        self._apply(config)

    def _revert(self) -> None:
        assert self._before is not None
        before, self._before, self._revert_timer = self._before, None, None
        self._set(before)

    def _play(self, timetable: Iterable[Step]) -> None:
        self._step_timers = [
            self._loop.call_later(step.at_s, self._take_step, step.changes) for step in timetable
        ]

    def _take_step(self, changes: Mapping[str, Any]) -> None:
        """A passing change stays until its own end, also when a step comes meanwhile."""
        if self._before is not None:
            self._before = self._before.changed(changes)
        self._set(self._current.changed(changes))

    def _stop_timetable(self) -> None:
        for timer in self._step_timers:
            timer.cancel()
        self._step_timers.clear()
