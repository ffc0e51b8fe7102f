"""Lines are broken between words for a terminal, and stay one line for whoever greps them."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len

from worker.cli.console import PlainConsole
from worker.cli.usage import lay_out
from worker.stack.lines import make_prefix, wrap_beside
from worker.text.columns import count_columns
from worker.text.wrapping import wrap_line, wrap_lines

ID = "batch_01a21b0582de702e91643bddbd265fa0"
SENTENCE = "every word of this sentence stays whole however narrow the terminal is that it is shown in"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def console(stream: io.StringIO, width: int) -> PlainConsole:
    made = PlainConsole()
    made.file = stream
    made.width = width
    return made


@pytest.mark.parametrize("width", [24, 33, 60, 120])
def test_no_row_is_wider_than_the_terminal_and_no_word_is_broken(width: int) -> None:
    rows = wrap_line(SENTENCE, width)
    assert " ".join(row.strip() for row in rows) == SENTENCE
    assert all(len(row) <= width for row in rows)
    assert [row.startswith("  ") for row in rows] == [False, *[True] * (len(rows) - 1)]


def test_a_line_that_fits_or_is_for_no_terminal_is_left_as_it_is() -> None:
    assert wrap_line("  two  words ", 60) == ["  two  words "]
    assert wrap_line(SENTENCE, None) == [SENTENCE]
    assert wrap_line("", 60) == [""]
    assert wrap_line("", 1) == [""]
    assert wrap_lines(f"a\n\n{SENTENCE}", 60) == "\n".join(["a", "", *wrap_line(SENTENCE, 60)])


def test_what_is_to_be_copied_stays_whole_where_it_can() -> None:
    assert wrap_line(f"    in {ID} there are two", 42) == ["    in", f"    {ID}", "      there are two"]
    command = f"`antrean cancel {ID}`"
    assert wrap_line(f"goes on, {command} gives it up", 60, hang=16) == [
        "goes on,",
        f"     {command}",
        "                gives it up",
    ], "a command has as few spaces before it as it needs"
    path = "/srv/" + "x" * 80
    assert wrap_line(f"see {path} for more", 60) == ["see", path, "  for more"], (
        "the terminal breaks it, not we"
    )


def test_a_number_stays_with_its_word_and_a_row_ends_with_the_dot() -> None:
    line = "docs · 12 done · 3 failed · 246 tokens"
    assert wrap_line(line, 34) == ["docs · 12 done · 3 failed ·", "  246 tokens"]
    assert wrap_line(line, 26) == ["docs · 12 done ·", "  3 failed · 246 tokens"]


def test_wide_characters_count_as_two() -> None:
    rows = wrap_line("请稍候 " * 12, 20)
    assert all(cell_len(row) <= 20 for row in rows)
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("plain", 5),
        ("请稍候", 6),
        ("ｆｕｌｌ", 8),
        ("한국어", 6),
        ("e\u0301", 1),
        ("❤️", 2),
        ("🇩🇪", 2),
        ("👩\u200d👧", 5),  # joined: the sum of the parts
    ],
)
def test_columns_are_counted_without_rich_and_are_never_too_few(text: str, columns: int) -> None:
    assert count_columns(text) == columns >= cell_len(text)


def test_on_a_terminal_a_line_is_broken_and_in_a_pipe_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # it makes no terminal of a pipe
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for is_terminal in (True, False):
        stream = Terminal() if is_terminal else io.StringIO()
        out = console(stream, 60)
        out.print(SENTENCE)
        out.say(SENTENCE)
        out.say((SENTENCE, "bold"))
        rows = stream.getvalue().splitlines()
        assert len(rows) == (6 if is_terminal else 3)
        assert rows[:2] == (wrap_line(SENTENCE, 60) if is_terminal else [SENTENCE, SENTENCE])
        assert "\x1b[1m" in rows[-1], "each row has its style"


def test_a_line_hangs_where_it_is_told_to() -> None:
    stream = Terminal()
    console(stream, 40).say("ok  settings: home /tmp/x, endpoint https://endpoint.test", hang=4)
    assert stream.getvalue().splitlines() == [
        "ok  settings: home /tmp/x, endpoint",
        "    https://endpoint.test",
    ]


def test_each_part_of_a_line_of_the_stack_has_its_prefix() -> None:
    prefix = make_prefix("worker1", width=7, number=0, is_coloured=True)
    parts = wrap_beside(prefix, f"\x1b[33mwarning\x1b[0m {SENTENCE}", 60)
    assert all(part.startswith(prefix) for part in parts)
    assert len(parts) == 3
    assert all(len(part) - len(prefix) <= 50 + 9 for part in parts), "colours take no columns"
    assert wrap_beside(prefix, SENTENCE, None) == [prefix + SENTENCE]


SMALL = [("DeepSeek-V3.1", (*"6036210", "$0")), ("all", (*"6036210", "$0"))]
LARGE = [
    (ID, ("1,204,311", "12,044", "981,204,311", "604,120,431", "1,585,324,742", "0", "304,120,431", "$91.20"))
]


def test_the_table_of_usage_has_a_line_a_group_where_it_fits_and_for_programs() -> None:
    for width in (None, 120, 83):
        lines = list(lay_out("model", SMALL, width))
        assert [line.split()[0] for line in lines] == ["model", "DeepSeek-V3.1", "all"]
        assert len({len(line) for line in lines}) == 1
    assert len(list(lay_out("batch", LARGE, None))) == 2


def test_the_table_of_usage_stacks_where_it_does_not_fit_and_cuts_nothing() -> None:
    assert list(lay_out("model", SMALL, 72))[:3] == [
        "model",
        "  answered  unused  prompt  completion  total  cached  reasoning  cost",
        "DeepSeek-V3.1",
    ]
    assert list(lay_out("batch", LARGE, 60)) == [
        ID,
        "  answered 1,204,311 · unused 12,044 · prompt 981,204,311 ·",
        "  completion 604,120,431 · total 1,585,324,742 · cached 0 ·",
        "  reasoning 304,120,431 · cost $91.20",
    ]
