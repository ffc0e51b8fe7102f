"""How many columns of a terminal a text takes, from Python's own Unicode tables. Pure.

The command line draws with Rich and measures with Rich's tables. This is for what speaks without it: a worker, its
logs, and a gateway.
"""

from __future__ import annotations

import unicodedata

_EMOJI_STYLE = "\N{VARIATION SELECTOR-16}"  # the character before it takes two columns
_MARKS = ("Mn", "Me")  # they stand above the character before them
# Blocks that are wide as a whole, also where Python's tables are older than the terminal's.
_WIDE_BLOCKS = ((0x4DC0, 0x4DFF), (0x1F300, 0x1FAFF), (0x20000, 0x3FFFD))


def count_columns(text: str) -> int:
    """Columns of `text` as one line. A character that is joined of several counts as their sum: never too few."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in _MARKS:
        return int(character == _EMOJI_STYLE)
    is_wide = unicodedata.east_asian_width(character) in "WF"
    return 2 if is_wide or any(first <= ord(character) <= last for first, last in _WIDE_BLOCKS) else 1
