"""Text that both databases can hold. PostgreSQL refuses U+0000 and lone surrogates, SQLite the latter."""

from __future__ import annotations

import re

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean_text(text: str | None) -> str | None:
    """`text` with each U+0000 and lone surrogate replaced by U+FFFD. The raw bytes are kept elsewhere."""
    if text is None or (text.isascii() and "\0" not in text):  # nearly all, in a third of the time
        return text
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
