"""File names in the system's form (FileName) and as text. The system's are bytes, which Python decodes by the locale.

A name that is shown, stored or compared is text: UTF-8, the same in every locale. A file is opened by its FileName.
"""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import NewType

FileName = NewType("FileName", str)
"""A name or path that this process can open: as os.listdir, sys.argv and os.environ give it."""
# Each byte of a name that is not UTF-8 becomes a lone surrogate, so that the name can be turned back and opened.
_BYTES = "surrogateescape"


def as_text(name: FileName | PurePath) -> str:
    """The name as text: decoded as UTF-8 in every locale, with a lone surrogate for each byte that is not UTF-8."""
    return os.fsencode(name).decode("utf-8", _BYTES)


def as_file_name(text: str) -> FileName:
    """The name for which `as_text` gives `text`."""
    return FileName(os.fsdecode(text.encode("utf-8", _BYTES)))


def is_utf8(text: str) -> bool:
    """Whether every byte of the name is UTF-8. `text` is from `as_text`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def rejoined(sentence: str) -> str:
    """A sentence with the FileNames in it turned into text. Under an ASCII locale they come as single bytes."""
    if is_utf8(sentence):
        return sentence
    try:
        return sentence.encode("utf-8", _BYTES).decode("utf-8", _BYTES)
    except UnicodeEncodeError:
        return sentence  # it holds half of a surrogate pair, which stands for no byte
