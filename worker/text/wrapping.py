"""Lines broken between words, for a terminal: what it breaks itself, it breaks inside of words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

HANG = 2
"""Columns by which the rows below the first are indented further than it: so one sees where a line begins."""

_LEAST = 20  # columns that are left for words beside an indent
# A command between backticks is to be copied and stays whole, so does a number with its word, and a row ends with the
# dot between two facts.
_WHOLE = re.compile(r"(?:\d[\d.,]* )?(?:`[^`]*`|[^ ])+(?: ·)?(?= |$)")
_WORD = re.compile(r"[^ ]+")


def terminal_width(descriptor: int) -> int | None:
    """Columns of the terminal behind `descriptor`; None where it is a pipe or a file, whose lines stay whole."""
    try:
        return os.get_terminal_size(descriptor).columns or None
    except OSError:
        return None


def count_columns(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    if text.isascii() and text.isprintable():
        return len(text)
    from rich.cells import cell_len  # local: a worker and a producer import this module, and need no Rich

    return cell_len(text)


@dataclass(frozen=True, slots=True)
class Row:
    """A part of a line, from `start` to `end`, and the spaces before it."""

    indent: int
    start: int
    end: int


def break_line(
    text: str, width: int, *, hang: int | None = None, measure: Callable[[str], int] = count_columns
) -> list[Row]:
    """The rows of one line. None is wider than `width` columns, but for a word that is.

    `hang`: the spaces before each row but the first; unless given, two more than the line begins with. A path, an id or
    a command that would not fit behind them has fewer: what is to be copied stays whole where it can.
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
    """`text` as rows of a terminal of `width` columns; as it is where `width` is None."""
    if width is None or measure(text) <= width:
        return [text]
    rows = break_line(text, width, hang=hang, measure=measure)
    return [" " * row.indent + text[row.start : row.end] for row in rows]


def wrap_lines(text: str, width: int | None) -> str:
    """`text`, of several lines, each of them as `wrap_line` has it."""
    return "\n".join(row for line in text.split("\n") for row in wrap_line(line, width))


def _find_words(text: str, width: int, measure: Callable[[str], int]) -> list[tuple[int, int]]:
    words: list[tuple[int, int]] = []
    for whole in _WHOLE.finditer(text):
        if measure(whole[0]) <= width:
            words.append(whole.span())
        else:
            words += (word.span() for word in _WORD.finditer(text, *whole.span()))
    return words
