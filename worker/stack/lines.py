"""Formats the output lines of the parts for a terminal. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.cells import cell_len

from worker.text.printable import printable
from worker.text.wrapping import wrap_line

_LINE_MAX_BYTES = 16 * 1024
# Escape sequences are removed: a part's colours and cursor movements would disturb the lines of the others.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?")
_PLAIN_VALUE = re.compile(r"[^\s=\"']+")

_RESET = "\x1b[0m"
_PREFIX_COLOURS = ("\x1b[36m", "\x1b[35m", "\x1b[34m", "\x1b[32m", "\x1b[33m")
_LEVEL_COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31;1m"}


class LineSplitter:
    """Splits bytes from a pipe into whole lines. A line longer than 16 KiB comes in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        """The lines that `data` completes, in order."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > _LINE_MAX_BYTES:
            lines.append(self._rest[:_LINE_MAX_BYTES])
            self._rest = self._rest[_LINE_MAX_BYTES:]
        for line in lines:
            yield line.decode(errors="replace")

    def end(self) -> Iterator[str]:
        """The rest, which has no line break at its end, if there is one."""
        if self._rest:
            yield self._rest.decode(errors="replace")
        self._rest = b""


def make_readable(line: str, *, is_coloured: bool = False) -> list[str]:
    """A JSON log line as `12:03:04 warning gate.shut kind=quota`, its traceback below. Other lines stay as they are."""
    record = _parse_record(line)
    if record is None:
        return [_clean(line)]
    level = _clean(str(record.pop("level", "info")))
    event = _clean(str(record.pop("event", "")))
    trace = record.pop("exception", None)
    time = _format_time(record.pop("timestamp", None))
    colour = _LEVEL_COLOURS.get(level) if is_coloured else None
    shown_level = f"{colour}{level}{_RESET}" if colour else level
    fields = (f"{_clean(name)}={_format_value(value)}" for name, value in record.items())
    head = " ".join(part for part in (time, shown_level, event, *fields) if part)
    first, *others = head.split("\n")
    return [first, *(f"  {_clean(row)}" for row in [*others, *str(trace or "").split("\n")] if row.strip())]


def make_prefix(name: str, *, width: int, number: int, is_coloured: bool) -> str:
    """`worker1 | `, padded to `width`; in the colour of part `number` if `is_coloured`."""
    text = f"{name:<{width}} |"
    return f"{_PREFIX_COLOURS[number % len(_PREFIX_COLOURS)]}{text}{_RESET} " if is_coloured else f"{text} "


def wrap_beside(prefix: str, row: str, width: int | None) -> list[str]:
    """`row` after `prefix`, broken between words for a terminal of `width` columns. Each row has the prefix."""
    room = None if width is None else max(1, width - _shown_len(prefix))
    return [prefix + part for part in wrap_line(row, room, measure=_shown_len)]


def _shown_len(text: str) -> int:
    return cell_len(_ESCAPES.sub("", text))


def _parse_record(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "event" in record else None


def _format_time(value: object) -> str:
    try:
        return datetime.fromisoformat(str(value)).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return "" if value is None else _clean(str(value))


def _format_value(value: object) -> str:
    if isinstance(value, str):
        text = _clean(value)
        return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)
    return _clean(json.dumps(value, ensure_ascii=False))


def _clean(text: str) -> str:
    return printable(_ESCAPES.sub("", text), keep="\n\t")
