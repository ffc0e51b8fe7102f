"""The progress line fits one line of any terminal, and what is drawn anew leaves no rest."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from worker.cli.live_lines import LiveLines
from worker.cli.progress import describe, draw
from worker.operations.tracking import Progress

SMALL = Progress(total=20, succeeded=8, in_flight=4, tokens_per_s=92.4, jobs_per_s=1.2)
LARGE = Progress(
    total=1_500_000, succeeded=1_204_311, failed=12_044, in_flight=512, tokens_per_s=41_234, jobs_per_s=3
)
IDLE = Progress(total=5)
STUCK = Progress(
    total=5, trouble="server_error: the endpoint is being moved, 请稍候 (until 14:03:20, in 45 s)"
)


@pytest.mark.parametrize("progress", [SMALL, LARGE, IDLE, STUCK], ids=["small", "large", "idle", "stuck"])
def test_each_line_fits_with_room_for_a_ctrl_c_and_none_breaks_down_to_sixty_columns(
    progress: Progress,
) -> None:
    for width in range(20, 200):
        lines = draw(progress, width)
        assert all(line.cell_len <= min(width, 60) - 3 for line in lines), (width, lines)
        assert len(lines) == 2 or width < 60 or progress is STUCK
    assert draw(progress, 60) == draw(progress, 200)
    assert draw(progress, 3)


def test_the_lines_tell_what_became_of_the_jobs_and_what_goes_on() -> None:
    assert [line.plain for line in draw(SMALL, 120)] == [
        f" 40% {'━' * 7:<19} 8/20 done · 0 failed · 10 s left",
        "     4 in flight · 92 tok/s",
    ]
    assert draw(SMALL, 120, is_ascii=True)[0].plain == f" 40% {'-' * 7:<19} 8/20 done · 0 failed · 10 s left"
    assert [line.plain for line in draw(LARGE, 60)] == [
        " 81% 1,204,311/1,500,000 · 12,044 failed · 1 d 02 h left",
        "     512 in flight · 41,234 tok/s",
    ]
    assert draw(LARGE, 40)[0].plain == " 81% ━━━━━━━━━    1,204,311/1,500,000"
    assert describe(SMALL) == "8/20 done · 0 failed · 4 in flight · 92 tok/s · 10 s left"


def test_what_is_waited_for_is_told_to_its_end_on_as_many_lines_as_it_takes() -> None:
    told = " ".join(line.plain.strip() for line in draw(STUCK, 60)[2:])
    assert told == f"waiting: {STUCK.trouble}"


def test_a_hundred_per_cent_are_shown_when_all_is_done_and_not_before() -> None:
    assert draw(Progress(total=1000, succeeded=999), 120)[0].plain.startswith(" 99%")
    assert draw(Progress(total=1000, succeeded=999, failed=1), 120)[0].plain.startswith("100%")


class Terminal:
    """What a console wrote, and the width that it sees."""

    def __init__(self, width: int) -> None:
        self._file = io.StringIO()
        self.console = Console(
            file=self._file,
            force_terminal=True,
            width=width,
            soft_wrap=True,
            highlight=False,
            color_system=None,
        )

    def take(self) -> str:
        written = self._file.getvalue()
        self._file.seek(0)
        self._file.truncate()
        return written


UP, ERASED = "\x1b[1A", "\x1b[2K"


def test_lines_are_taken_away_before_others_are_put_there() -> None:
    terminal = Terminal(80)
    live = LiveLines(terminal.console)
    with live.shown():
        terminal.take()
        live.draw([Text("one"), Text("two")])
        assert terminal.take() == "one\ntwo"
        terminal.console.print("a note")
        assert terminal.take() == f"\r{ERASED}{UP}{ERASED}a note\none\ntwo"
    assert terminal.take().startswith(f"\r{ERASED}{UP}{ERASED}")


@pytest.mark.parametrize(("width", "rows"), [(200, 1), (100, 1), (99, 2), (50, 2), (49, 3), (1, 100)])
def test_a_line_is_taken_away_with_all_the_rows_that_a_narrower_terminal_made_of_it(
    width: int, rows: int
) -> None:
    terminal = Terminal(120)
    live = LiveLines(terminal.console)
    with live.shown():
        live.draw([Text("x" * 100)])
        terminal.take()
        terminal.console.width = width
        live.draw([])
        assert terminal.take() == f"\r{ERASED}" + f"{UP}{ERASED}" * (rows - 1)


def test_the_lines_go_and_the_cursor_comes_back_also_when_it_ends_badly() -> None:
    terminal = Terminal(80)
    live = LiveLines(terminal.console)

    def run() -> None:
        with live.shown():
            live.draw([Text("one")])
            terminal.take()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert terminal.take() == f"\r{ERASED}\x1b[?25h"
    terminal.console.print("after")
    assert terminal.take() == "after\n"
