"""Makes text storable in both databases. PostgreSQL refuses U+0000 and lone surrogates; SQLite refuses the latter."""

from __future__ import annotations

import re

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean_text(text: str | None) -> str | None:
    """`text` with each U+0000 and lone surrogate replaced by U+FFFD. The raw bytes of an answer are stored besides."""
    if text is None or (text.isascii() and "\0" not in text):  # a fast path for most texts
        return text
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
