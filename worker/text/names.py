"""Names and ids of other programs: what reads as one may be logged and shown, what reads as a prompt may not."""

from __future__ import annotations

import re

_NAME = re.compile(r"[\w.:@/+-]{1,160}", re.ASCII)


def as_name(value: object) -> str | None:
    """`value` if it reads as a name or an id, as a prompt does not; else None."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None
