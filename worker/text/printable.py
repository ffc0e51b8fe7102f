"""Text from outside, as a terminal, a spreadsheet or a JSON reader may be given it. Pure.

Names of files, batches and models, and the words of an endpoint, are anybody's: an escape sequence steers a
terminal, a mark of direction reorders what it shows, and a cell that begins with `=` is run by a spreadsheet.
"""

from __future__ import annotations

import re

# C0 and C1 controls, separators and marks of direction, what is invisible by design, and lone surrogates. The
# joiners and breaks of zero width (U+200B to U+200D) stay: emoji and whole scripts are written with them.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_NOT_ASCII = re.compile("[^\x00-\x7e]")
_SIGNS = {"·": "-", "–": "-", "×": "x", "…": "...", "→": "->", "≤": "<=", "≥": ">="}
# Besides the ASCII signs, the wide ones that a spreadsheet may take for them.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def printable(text: str, *, keep: str = "") -> str:
    """One line that shows `text` and steers nothing: each unprintable character but those in `keep` is spelled out.

    An escape character becomes the four characters `\\x1b`. The same text comes out when it is put in again.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
    )


def printable_text(text: str) -> str:
    """Text of several lines as `printable` shows it: lines stay lines, tabs stay tabs."""
    return printable(text.replace("\r\n", "\n"), keep="\n\t")


def printable_json(encoded: str, *, is_ascii: bool = False) -> str:
    """The same JSON value in characters that steer nothing: an unprintable one is written as JSON escapes it.

    With `is_ascii` every one beyond ASCII is, for a reader of another encoding.
    """
    if encoded.isascii() and "\x7f" not in encoded:
        return encoded  # what is below U+0020, JSON escapes anyway
    return (_NOT_ASCII if is_ascii else _UNPRINTABLE).sub(_escape_in_json, encoded)


def csv_cell(value: object) -> object:
    """A value as a CSV writer may write it: text that a spreadsheet would run gets a `'` before it.

    Numbers and None stay what they are. Lines stay lines; other control characters are spelled out.
    """
    if not isinstance(value, str):
        return value
    text = printable_text(value)
    return f"'{text}" if value.lstrip(" ").startswith(_FORMULA) else text


def in_ascii(text: str) -> str:
    """`text` in ASCII, as near as it gets: signs of ours by their ASCII forms, other characters by their numbers."""
    return _NOT_ASCII.sub(lambda found: _SIGNS.get(found[0]) or _number(found[0]), text)


def _number(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _escape_in_json(found: re.Match[str]) -> str:
    character = found[0]
    if character < " ":
        return character  # outside of strings only: the line breaks of an indented value
    return _number(character)
