"""The progress line of a run: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from worker.cli.console import err
from worker.cli.tracking import Progress
from worker.printable import printable
from worker.reports.summary import format_count, format_seconds

_PLAIN_EVERY_S = 5.0


class _Figures(ProgressColumn):
    """Done, failed, in flight, tokens a second and time left."""

    def render(self, task: Task) -> Text:
        progress: Progress | None = task.fields.get("figures")
        return Text("") if progress is None else Text(describe(progress))


_NARROW = 100  # columns


def describe(progress: Progress) -> str:
    """One line of figures."""
    # Whole seconds: a line that changes its length with each look is hard to read.
    left = "–" if progress.left_s is None else _in_whole_seconds(math.ceil(progress.left_s))
    rate = round(progress.tokens_per_s)
    return (
        f"{format_count(progress.succeeded)}/{format_count(progress.total)} done · {progress.failed} failed · "
        f"{progress.in_flight} in flight · {format_count(rate)} tok/s · {left} left"
    )


def _in_whole_seconds(seconds: int) -> str:
    return f"{seconds} s" if seconds < 60 else format_seconds(seconds)


class Display:
    """Shows progress as it comes."""

    def __init__(self) -> None:
        self._bar = Bar(
            TextColumn("{task.percentage:>3.0f}%"),
            BarColumn(bar_width=8 if err.width < _NARROW else 24),
            _Figures(),
            console=err,
        )
        self._task = self._bar.add_task("jobs", total=None, figures=None)
        self._live: Live | None = None
        self._plain_at_s = float("-inf")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """On the screen while inside."""
        if not err.is_terminal:
            yield
            return
        with Live(self._render(None), console=err, refresh_per_second=8, transient=True) as live:
            self._live = live
            yield
            self._live = None

    def update(self, progress: Progress) -> None:
        """Shows `progress` now."""
        self._bar.update(self._task, total=progress.total, completed=progress.done, figures=progress)
        if self._live is not None:
            self._live.update(self._render(progress.trouble))
        elif not err.is_terminal and time.monotonic() - self._plain_at_s >= _PLAIN_EVERY_S:
            self._plain_at_s = time.monotonic()
            trouble = f" · waiting: {progress.trouble}" if progress.trouble else ""
            err.say(f"{describe(progress)}{trouble}")

    def _render(self, trouble: str | None) -> Group:
        lines: list[Text | Bar] = [self._bar]
        if trouble:
            lines.append(Text(printable(f"waiting: {trouble}"), style="yellow"))
        return Group(*lines)
