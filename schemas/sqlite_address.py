"""The address of an SQLite file: `sqlite:///`, then the path of the file, unchanged. Pure.

Nothing after the slashes is decoded: `%20`, `?` and `#` are characters of the file's name.
"""

from __future__ import annotations

import re

_PREFIX = "sqlite:///"
_MEANT = re.compile(r"sqlite(?:\+\w+)?:", re.IGNORECASE)
_FORM = re.compile(r"sqlite(?:\+\w+)?:///(.*)", re.IGNORECASE | re.DOTALL)


def is_sqlite_address(address: str) -> bool:
    """Whether the address is one for SQLite, well-formed or not."""
    return _MEANT.match(address) is not None


def parse_sqlite_path(address: str) -> str:
    """The path in the address, unchanged. Raises ValueError with a sentence if it names no file."""
    found = _FORM.fullmatch(address)
    if found is None:
        raise ValueError(f"must be {_PREFIX} and the path of a file: three slashes, no host and no password")
    path = found[1]
    if "\0" in path:
        raise ValueError("must not hold U+0000, which no path can")
    if path in ("", ":memory:"):
        raise ValueError(f"a ledger in memory is gone with its process: name a file, {_PREFIX}path")
    return path


def format_sqlite_address(path: str) -> str:
    """The address of the file at `path`; `parse_sqlite_path` gives the same path back."""
    return _PREFIX + path
