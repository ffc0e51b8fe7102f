"""Names and ids from other programs. Text with the form of a name may be logged; other text may be a prompt."""

from __future__ import annotations

import re

_NAME = re.compile(r"[\w.:@/+-]{1,160}", re.ASCII)


def as_name(value: object) -> str | None:
    """`value` if it has the form of a name or an id: 1 to 160 ASCII letters, digits and `_.:@/+-`. Else None."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None
