"""Makes text from outside safe for a terminal, a spreadsheet or a JSON reader. Pure.

Names of files, batches and models, and texts of an endpoint, may hold anything: an escape sequence controls a
terminal, a direction mark reorders what it shows, and a spreadsheet runs a cell that begins with `=`.
"""

from __future__ import annotations

import re

# C0 and C1 controls, separators, direction marks, invisible characters, and lone surrogates. Zero-width joiners and
# breaks (U+200B to U+200D) stay: emoji and many scripts need them.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_NOT_ASCII = re.compile("[^\x00-\x7e]")
_SIGNS = {"·": "-", "–": "-", "×": "x", "…": "...", "→": "->", "≤": "<=", "≥": ">="}
# Signs that begin a formula in a spreadsheet: in ASCII, and the wide forms that some programs accept for them.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def printable(text: str, *, keep: str = "") -> str:
    """`text` as one safe line: each unprintable character, except those in `keep`, is written as an escape sequence.

    An escape character becomes the four characters `\\x1b`. Idempotent: the result stays the same if put in again.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
    )


def printable_text(text: str) -> str:
    """`text` made safe as by `printable`, but line breaks and tabs stay."""
    return printable(text.replace("\r\n", "\n"), keep="\n\t")


def printable_json(encoded: str, *, is_ascii: bool = False) -> str:
    """The same JSON value with each unprintable character as a JSON escape.

    With `is_ascii`, all characters beyond ASCII are escaped, for a reader that uses another encoding.
    """
    if encoded.isascii() and "\x7f" not in encoded:
        return encoded  # characters below U+0020 are always escaped in JSON
    return (_NOT_ASCII if is_ascii else _UNPRINTABLE).sub(_escape_in_json, encoded)


def csv_cell(value: object) -> object:
    """A value for a CSV writer: text that a spreadsheet would run as a formula gets a `'` before it.

    Numbers and None are not changed. Line breaks stay; other control characters are escaped.
    """
    if not isinstance(value, str):
        return value
    text = printable_text(value)
    return f"'{text}" if value.lstrip(" ").startswith(_FORMULA) else text


def in_ascii(text: str) -> str:
    """`text` in ASCII: antrean's own signs as similar ASCII signs, other characters as escapes with their numbers."""
    return _NOT_ASCII.sub(lambda found: _SIGNS.get(found[0]) or _number(found[0]), text)


def _number(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _escape_in_json(found: re.Match[str]) -> str:
    character = found[0]
    if character < " ":
        return character  # a line break of an indented value, which is outside of strings
    return _number(character)
