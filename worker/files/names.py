"""Names of files as the system has them, and as text. They are bytes, which Python decodes as the locale says.

A name that is told, stored or compared is text: UTF-8, the same in every locale. A file is opened by its FileName.
"""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import NewType

FileName = NewType("FileName", str)
"""A name, or a path, as this process opens it: what os.listdir, sys.argv and os.environ give."""

# What is no UTF-8 in a name becomes a lone surrogate, by which it is known, and can be opened again.
_BYTES = "surrogateescape"


def as_text(name: FileName | PurePath) -> str:
    """What the name says, as UTF-8, whatever the locale; a lone surrogate for each byte that is none."""
    return os.fsencode(name).decode("utf-8", _BYTES)


def as_file_name(text: str) -> FileName:
    """The name of which `as_text` says `text`."""
    return FileName(os.fsdecode(text.encode("utf-8", _BYTES)))


def is_utf8(text: str) -> bool:
    """Whether the text of a name has no byte in it that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def rejoined(sentence: str) -> str:
    """A sentence that may quote FileNames, with their characters: under a locale of ASCII they come in single bytes."""
    if is_utf8(sentence):
        return sentence
    try:
        return sentence.encode("utf-8", _BYTES).decode("utf-8", _BYTES)
    except UnicodeEncodeError:
        return sentence  # half of a surrogate pair is no byte
