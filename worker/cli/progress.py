"""The progress line of a run: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.text import Text

from worker.cli.console import err
from worker.cli.live_lines import LiveLines
from worker.operations.tracking import Progress
from worker.reports.summary import format_cost, format_count, format_seconds
from worker.text.printable import printable

_PLAIN_EVERY_S = 5.0
_NARROWEST = (
    60  # columns: down to there no line ever breaks, however the terminal is resized while it is drawn
)
_SPARE = 3  # columns: a terminal puts a ^C behind the line
_LONGEST_BAR = 24


def describe(progress: Progress) -> str:
    """All figures in one line."""
    return " · ".join((_done(progress), _failed(progress), _now(progress), _left(progress)))


def draw(progress: Progress, width: int, *, is_ascii: bool = False) -> list[Text]:
    """Lines: the share, a bar and the ended jobs; then the figures of now; then what the run waits for, if anything.

    No line is longer than `width` columns, nor than 60.
    """
    limit = min(width, _NARROWEST) - _SPARE
    share = progress.done / progress.total if progress.total else 0.0
    percent = f"{100 if share == 1 else min(99, round(100 * share)):>3}%"
    figures = ""
    done, ended = _done(progress), f"{_failed(progress)} · {_left(progress)}"
    for one in (f"{done} · {ended}", f"{done.removesuffix(' done')} · {ended}", done.removesuffix(" done")):
        if len(percent) + 1 + len(one) <= limit:
            figures = one
            break
    columns = min(_LONGEST_BAR, limit - len(f"{percent}  {figures}"))
    parts = (Text(percent), _bar(share, columns, sign="-" if is_ascii else "━"), Text(figures))
    lines = [Text(" ").join(part for part in parts if part)]
    lines += Text(f"     {_now(progress)}", style="dim").wrap(err, max(1, limit))
    if progress.trouble:
        lines += Text(printable(f"waiting: {progress.trouble}"), style="yellow").wrap(err, max(1, limit))
    return lines


def _done(progress: Progress) -> str:
    return f"{format_count(progress.succeeded)}/{format_count(progress.total)} done"


def _failed(progress: Progress) -> str:
    return f"{format_count(progress.failed)} failed"


def _now(progress: Progress) -> str:
    figures = (
        f"{format_count(progress.in_flight)} in flight · {format_count(round(progress.tokens_per_s))} tok/s"
    )
    # While a run goes on, nothing is said of prices that nobody knows: the summary does.
    known = progress.cost.known_nano
    return f"{figures} · {format_cost(known)}" if known else figures


def _left(progress: Progress) -> str:
    if progress.left_s is None:
        return "– left"
    # Whole seconds: a line that changes its length with each look is hard to read.
    seconds = math.ceil(progress.left_s)
    return f"{seconds} s left" if seconds < 60 else f"{format_seconds(seconds)} left"


def _bar(share: float, columns: int, *, sign: str) -> Text:
    columns = max(0, columns)
    full = int(share * columns)
    # Where there are no colours, what is to come is left blank.
    rest = sign if err.color_system else " "
    return Text.assemble((sign * full, "bar.complete"), (rest * (columns - full), "bar.back"))


class Display:
    """Shows progress as it comes."""

    def __init__(self) -> None:
        self._live = LiveLines(err)
        self._is_live = err.is_terminal and not err.is_dumb_terminal
        self._plain_at_s = float("-inf")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keeps the progress on the screen while inside."""
        if not self._is_live:
            yield
            return
        with self._live.shown():
            yield

    def update(self, progress: Progress) -> None:
        """Shows `progress` now."""
        if self._is_live:
            self._live.draw(draw(progress, err.width, is_ascii=err.options.ascii_only))
        elif time.monotonic() - self._plain_at_s >= _PLAIN_EVERY_S:
            self._plain_at_s = time.monotonic()
            trouble = f" · waiting: {progress.trouble}" if progress.trouble else ""
            err.say(f"{describe(progress)}{trouble}")
