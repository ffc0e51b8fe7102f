"""The supervisor: starts the parts, prints their output, starts those that die again, and stops all in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from worker.stack.broker import EmbeddedBroker
from worker.stack.figures import Figures, describe_health, parse_figures
from worker.stack.lines import make_prefix, make_readable, wrap_beside
from worker.stack.part import Part, Recipe
from worker.stack.plan import Plan
from worker.stack.screen import Screen
from worker.text.printable import printable

OWN_NAME = "antrean"
_FLOWER_LOOK_S = 0.25


class Supervisor:
    """Runs the parts of `plan` until a signal asks for the stop."""

    def __init__(
        self, plan: Plan, screen: Screen, *, is_coloured: bool, broker: EmbeddedBroker | None = None
    ) -> None:
        self._plan = plan
        self._screen = screen
        self._broker = broker
        self._is_coloured = is_coloured
        recipes = [*plan.workers, *([plan.flower] if plan.flower else [])]
        self._width = max(len(OWN_NAME), *(len(recipe.name) for recipe in recipes))
        self._own_prefix = make_prefix(OWN_NAME, width=self._width, number=len(recipes), is_coloured=False)
        parts = [self._part(recipe, number) for number, recipe in enumerate(recipes)]
        self._workers = parts[: len(plan.workers)]
        self._flower = parts[-1] if plan.flower else None
        self._figures = Part(plan.figures, self._take_figures, self._say)
        self._last = Figures()
        self._was_ready = False
        self._stop_requested = asyncio.Event()
        self._is_stopping = False

    async def run(self) -> None:
        """Returns when a signal has asked for the stop and every part has ended."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGTERM, self._stop_requested.set)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under `nohup` it stays ignored
            loop.add_signal_handler(signal.SIGHUP, self._stop_requested.set)
        if self._broker is not None:
            self._broker.watch(self._say)
        for part in self._all_parts():
            part.begin()
        watch_flower = asyncio.create_task(self._watch_flower())
        await self._stop_requested.wait()
        watch_flower.cancel()
        if self._broker is not None:
            self._broker.unwatch()
        await self._stop_parts()

    async def _stop_parts(self) -> None:
        self._is_stopping = True
        self._say(f"stopping: calls in flight have {self._plan.grace_s:g} s to end; Ctrl-C cuts them short")
        # Flower and the figures hold no jobs; the workers give back the claims that they cannot finish.
        await asyncio.gather(*(part.stop() for part in self._all_parts()))
        for part in self._workers:
            if part.child is not None and part.child.status:
                self._say(
                    f"{part.name} did not end as it should ({part.child.status}); its jobs are rescued later"
                )

    def _all_parts(self) -> list[Part]:
        return [*([self._flower] if self._flower else []), self._figures, *self._workers]

    def _interrupt(self) -> None:
        if not self._stop_requested.is_set():
            self._stop_requested.set()
        elif self._is_stopping:
            self._say("hurrying: calls in flight are cut and given back")
            for part in self._workers:
                part.hurry()

    def _reap(self) -> None:
        for part in self._all_parts():
            part.reap()

    def _part(self, recipe: Recipe, number: int) -> Part:
        prefix = make_prefix(recipe.name, width=self._width, number=number, is_coloured=self._is_coloured)
        return Part(recipe, self._shower(prefix), self._say)

    def _shower(self, prefix: str) -> Callable[[str], None]:
        def show(line: str) -> None:
            for row in make_readable(line, is_coloured=self._is_coloured):
                if row.strip():
                    self._show(prefix, row)

        return show

    def _say(self, sentence: str) -> None:
        self._show(self._own_prefix, printable(sentence))

    def _show(self, prefix: str, row: str) -> None:
        for part in wrap_beside(prefix, row, self._screen.width):
            self._screen.line(part)

    def _take_figures(self, line: str) -> None:
        figures = parse_figures(line)
        if figures is None:
            for row in make_readable(line):
                self._say(row)
            return
        self._tell_what_is_away(figures)
        self._last = figures
        for part in self._workers:
            if not part.is_ready and _is_registered(part, figures):
                self._mark_ready(part)
        if figures.counts is not None:
            ready = sum(part.is_ready for part in self._workers)
            self._say(describe_health(figures, ready=ready, wanted=len(self._workers)))

    def _tell_what_is_away(self, figures: Figures) -> None:
        for name, sentence in figures.away.items():
            if name not in self._last.away:
                self._say(sentence)
        for name in self._last.away:
            if name not in figures.away:
                self._say(f"the {name} answers again")
        if "database" in figures.away:
            return  # without the database nothing is known of the jobs
        if _kind(figures.trouble) != _kind(self._last.trouble):
            self._say(f"jobs wait: {figures.trouble}" if figures.trouble else "jobs wait no longer")

    def _mark_ready(self, part: Part) -> None:
        part.is_ready = True
        if self._was_ready or part.restart_count:
            self._say(f"{part.name} is ready again")
        parts = [*self._workers, *([self._flower] if self._flower else [])]
        if not self._was_ready and all(one.is_ready for one in parts):
            self._was_ready = True
            self._say(self._plan.ready_sentence)

    async def _watch_flower(self) -> None:
        """Marks Flower ready when its port takes connections. Flower gives no sign of that: hence a poll."""
        while self._flower is not None:
            if self._flower.is_alive and not self._flower.is_ready and await self._is_flower_open():
                self._mark_ready(self._flower)
            await asyncio.sleep(_FLOWER_LOOK_S)

    async def _is_flower_open(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(*self._plan.flower_address)
        except OSError:
            return False
        writer.close()
        return True


def _is_registered(part: Part, figures: Figures) -> bool:
    """Whether the ledger has this run of the part, and not an older process with the same pid."""
    child = part.child
    return child is not None and any(
        pid == child.pid and started_at_ms >= (part.started_at_s - 1) * 1000
        for pid, started_at_ms in figures.workers
    )


def _kind(trouble: str | None) -> str:
    return (trouble or "").partition(":")[0].partition(" (HTTP ")[0]
