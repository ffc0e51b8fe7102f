"""Breaks lines between words for a terminal. A terminal itself would break them inside of words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from worker.text.columns import count_columns

HANG = 2
"""Columns by which the rows after the first are indented more than the first. They show where a line begins."""
_LEAST = 20  # columns that an indent must leave for words
# These stay on one row: a command between backticks (it is to be copied), a number with its word, and a fact with the
# dot after it.
_WHOLE = re.compile(r"(?:\d[\d.,]* )?(?:`[^`]*`|[^ ])+(?: ·)?(?= |$)")
_WORD = re.compile(r"[^ ]+")


def terminal_width(descriptor: int) -> int | None:
    """The columns of the terminal at `descriptor`; None for a pipe or a file, whose lines are not broken."""
    try:
        return os.get_terminal_size(descriptor).columns or None
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Row:
    """A part of a line: its characters from `start` to `end` (exclusive), after `indent` spaces."""

    indent: int
    start: int
    end: int


def break_line(
    text: str, width: int, *, hang: int | None = None, measure: Callable[[str], int] = count_columns
) -> list[Row]:
    """The rows of one line. No row is wider than `width` columns, unless a single word is.

    `hang`: the spaces before each row except the first; by default two more than the line's own indent. A path, an id
    or a command that does not fit after them gets a smaller indent, so that it stays on one row if possible.
    """
    hang = len(text) - len(text.lstrip(" ")) + HANG if hang is None else hang
    hang = min(hang, max(0, width - _LEAST))
    rows: list[Row] = []
    indent = start = end = 0
    for first, last in _find_words(text, width, measure):
        if end and indent + measure(text[start:last]) > width:
            rows.append(Row(indent, start, end))
            indent, start = min(hang, max(0, width - measure(text[first:last]))), first
        end = last
    return [*rows, Row(indent, start, end)]


def wrap_line(
    text: str, width: int | None, *, hang: int | None = None, measure: Callable[[str], int] = count_columns
) -> list[str]:
    """`text` as rows for a terminal of `width` columns; unchanged if `width` is None."""
    if width is None or measure(text) <= width:
        return [text]
    rows = break_line(text, width, hang=hang, measure=measure)
    return [" " * row.indent + text[row.start : row.end] for row in rows]


def wrap_lines(text: str, width: int | None) -> str:
    """`text`, each of its lines broken as by `wrap_line`."""
    return "\n".join(row for line in text.split("\n") for row in wrap_line(line, width))


def _find_words(text: str, width: int, measure: Callable[[str], int]) -> list[tuple[int, int]]:
    words: list[tuple[int, int]] = []
    for whole in _WHOLE.finditer(text):
        if measure(whole[0]) <= width:
            words.append(whole.span())
        else:
            words += (word.span() for word in _WORD.finditer(text, *whole.span()))
    return words
