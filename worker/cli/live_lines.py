"""Lines at the foot of a terminal that are drawn anew, above which everything else is printed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.segment import ControlType
from rich.text import Text


class LiveLines(RenderHook):
    """Keeps its lines below what `console` prints, from `shown` on; at the end they are gone.

    Rich's own Live counts the rows that it wrote. A terminal that is made narrower breaks a line into several rows,
    and Live leaves some of them behind. Here the rows are counted by the present width. (A terminal that cuts its lines
    instead loses a row above, once.)
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: Sequence[Text] = ()
        self._drawn: list[int] = []  # the width of each line that is on the screen, in cells

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keeps the lines on the screen while inside."""
        self._console.push_render_hook(self)
        self._console.show_cursor(False)
        stream = sys.stderr
        # A line of a log goes above the lines, too: it would be drawn over.
        sys.stderr = FileProxy(self._console, stream) if self._console.is_terminal else stream
        try:
            yield
        finally:
            sys.stderr = stream
            self._lines = ()
            self.draw(self._lines)
            self._console.pop_render_hook()
            self._console.show_cursor(True)

    def draw(self, lines: Sequence[Text]) -> None:
        """Shows these lines from now on. A line may be longer than the terminal is wide: it goes on below."""
        self._lines = lines
        self._console.print(Control(), end="")  # what is printed takes the lines with it

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What is to be printed, with the lines taken away before it and put back behind it."""
        erased = self._erase()
        self._drawn = [line.cell_len for line in self._lines]
        drawn = []
        for number, line in enumerate(self._lines, start=1):
            line = line.copy()
            line.end = "\n" if number < len(self._lines) else ""
            drawn.append(line)
        return [erased, *renderables, *drawn]

    def _erase(self) -> Control:
        if not self._drawn:
            return Control()
        width = max(1, self._console.width)
        rows = sum(max(1, -(-cells // width)) for cells in self._drawn)
        one_up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        return Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *(one_up * (rows - 1)))
