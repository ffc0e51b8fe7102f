"""Limits of the values that the ledger can store. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 100  # levels of nesting; orjson writes at most 254, and a schema of tools has about 10
MAX_ID_LENGTH = 255
MAX_MODEL_LENGTH = 512
MAX_ATTEMPTS = 1_000_000  # the column holds less than 2³¹
MAX_TIME_MS = 253_402_300_799_999  # the end of the year 9999, the last of Python's dates
MAX_EXTRAS_BYTES = 256 * 1024  # of metadata, and of a Celery message's callbacks
_LARGEST_INT, _SMALLEST_INT = 2**64 - 1, -(2**63)  # the range that orjson writes
_UNKEEPABLE_TEXT = re.compile("[\x00\ud800-\udfff]")


def find_unkeepable(value: Any, *, with_text: bool) -> str | None:
    """Why a decoded JSON value cannot be stored, as text to follow a field's name; None if it can.

    With `with_text`, its texts and keys are checked, too. It does not recurse, so the value may be nested to any depth.
    """
    todo: list[tuple[Any, int]] = [(value, 1)]
    while todo:
        one, depth = todo.pop()
        if isinstance(one, str):
            if with_text and not is_keepable_text(one):
                return "must not hold U+0000 or half of a surrogate pair"
        elif isinstance(one, float):
            if not math.isfinite(one):
                return "must not hold NaN or Infinity, which JSON cannot write"
        elif isinstance(one, bool):
            continue
        elif isinstance(one, int):
            if not _SMALLEST_INT <= one <= _LARGEST_INT:
                return "must not hold a whole number beyond 64 bits: readers of JSON change it"
        elif isinstance(one, (Mapping, list, tuple)):
            if depth > MAX_DEPTH:
                return f"must not be nested deeper than {MAX_DEPTH} levels"
            inner: Any = one
            if isinstance(one, Mapping):
                inner = one.values()
                if with_text:
                    todo += [(key, depth) for key in one]
            todo += [(each, depth + 1) for each in inner]
    return None


def is_keepable_text(text: str) -> bool:
    """Whether both databases store the text unchanged."""
    return _UNKEEPABLE_TEXT.search(text) is None


def is_time_ms(value: int) -> bool:
    """Whether this is a time in UTC milliseconds within the range of Python's dates."""
    return abs(value) <= MAX_TIME_MS
