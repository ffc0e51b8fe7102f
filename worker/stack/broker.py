"""The embedded broker of `antrean up`: it runs while this process is attached to the home's stack."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from worker.errors import AntreanError
from worker.stack.attachment import Stack, StackLost, describe_death
from worker.stack.kept import decide_restart_delay_s


class EmbeddedBroker:
    """An attachment to the stack of `home`, until `detach`. Raises AntreanError if the broker does not start."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._stack = Stack.attach(home)
        self._failures = 0
        self._report: Callable[[str], None] = lambda _sentence: None
        try:
            self._stack.ensure_broker()
        except BaseException:
            self.detach()
            raise

    def watch(self, report: Callable[[str], None]) -> None:
        """Reports each death of the broker, in the running event loop, and starts a lost stack again."""
        self._report = report
        asyncio.get_running_loop().add_reader(self._stack.fileno(), self._look)

    def unwatch(self) -> None:
        """Ends the reports."""
        if self._stack.fileno() != -1:
            asyncio.get_running_loop().remove_reader(self._stack.fileno())

    def detach(self) -> None:
        """Returns when the broker has stopped, unless another command still holds it."""
        while self._stack.fileno() != -1:
            # Another Ctrl-C: nothing is left to cut short, the broker is writing its file.
            with contextlib.suppress(KeyboardInterrupt):
                self._stack.detach(wait=True)

    def _look(self) -> None:
        try:
            for event in self._stack.poll_events():
                if event.get("service") == "broker":
                    self._report(f"the broker {describe_death(event)}; the keeper starts it again")
        except StackLost:
            self._report("the keeper of the embedded broker is gone; it is started again")
            self.unwatch()
            self._stack.detach(wait=False)
            self._fetch_back()

    def _fetch_back(self) -> None:
        # In the event loop: it forks, so it must not be in a thread, and it takes a fraction of a second.
        loop = asyncio.get_running_loop()
        try:
            self._stack = Stack.attach(self._home)
            try:
                self._stack.ensure_broker()
            except AntreanError:
                self._stack.detach(wait=False)
                raise
        except AntreanError as exc:
            delay_s = decide_restart_delay_s(self._failures)
            self._failures += 1
            self._report(f"{exc}; it is tried again in {delay_s:g} s")
            loop.call_later(delay_s, self._fetch_back)
            return
        self._failures = 0
        self._report("the embedded broker runs again")
        loop.add_reader(self._stack.fileno(), self._look)
