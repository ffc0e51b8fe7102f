"""Formats log lines, in one form for terminals and one for programs (JSON).

All lines are made here, from structlog's events and from records of the standard library. So the same things are kept
out of all: values of frames, texts of exceptions, arguments of libraries' messages, passwords in addresses.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePath
from typing import Any

from worker.logs.crashes import tell_error, tell_traceback
from worker.text.printable import printable, printable_text

_OURS = ("antrean", "worker", "api_client", "schemas")
_PASSWORD = re.compile(r"(://[^\s:/@]*):\S*@")
_NAME = re.compile(r"[\w.:@/+*?=&%~-]{0,160}", re.ASCII)
_PLAIN_VALUE = re.compile(r"[^\s=\"']+")
_FIRST = ("timestamp", "level", "event")
# Arguments of Celery's messages that hold Celery's own words and quote nothing.
_OWN_WORDS = {"description"}
_OWN_WORDS_OF = ("consumer: Cannot connect to",)


def render(facts: Mapping[str, Any], *, as_json: bool) -> str:
    """The line of an event: `timestamp`, `level` and `event`, then its fields, then the exception of `exc_info`.

    For a terminal, a traceback follows on further lines.
    """
    told = {name: value for name, value in facts.items() if name not in ("exc_info", "stack_info")}
    exc, trace = _exception(facts.get("exc_info"))
    if exc is not None:
        told["exception"] = tell_traceback(exc, trace)
    if as_json:
        return _hide_passwords(json.dumps(told, default=_tell_value))
    raised = told.pop("exception", None)
    fields = (f"{name}={_short(value)}" for name, value in told.items() if name not in _FIRST)
    head = [str(told.get("timestamp", "")), f"[{told.get('level', 'info'):<8}]", str(told.get("event", ""))]
    line = printable(" ".join([*head, *fields]).strip())
    return _hide_passwords(line if raised is None else f"{line}\n{printable_text(str(raised))}")


def read_record(record: logging.LogRecord) -> dict[str, Any]:
    """A record as an event. Texts that a library's message quotes are left out."""
    facts: dict[str, Any] = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
        "level": record.levelname.lower(),
        "event": _own_message(record) if is_ours(record.name) else tell_message(record.msg, record.args),
    }
    if record.exc_info:
        facts["exc_info"] = record.exc_info
    return facts


def is_ours(logger: str) -> bool:
    """Whether a logger of this name is antrean's. Its messages are written in full."""
    return logger.split(".", 1)[0] in _OURS


def tell_message(words: object, args: object) -> str:
    """A library's message. Of its arguments only numbers and names are filled in.

    Libraries quote what they handle: a foreign message's arguments, a header, an answer. `…` stands for such a text,
    `<Message>` for an object. Of a message without arguments only the first line is kept: further lines may quote.
    """
    if not isinstance(words, str):
        return tell_error(words) if isinstance(words, BaseException) else f"<{type(words).__name__}>"
    if not args:
        return words.split("\n", 1)[0]
    is_plain = words.startswith(_OWN_WORDS_OF)
    told: Any
    if isinstance(args, Mapping):
        told = {name: _tell_argument(one, is_plain or name in _OWN_WORDS) for name, one in args.items()}
    else:
        told = tuple(_tell_argument(one, is_plain) for one in (args if isinstance(args, tuple) else (args,)))
    try:
        return str(words % told)
    except (TypeError, ValueError, KeyError):
        return words


class _Replacement(str):
    """A replacement for an argument. `%r` puts no quotes around it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _tell_argument(value: object, is_plain: bool) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _Replacement(value if is_plain or _NAME.fullmatch(value) else "…")
    return _Replacement(
        tell_error(value) if isinstance(value, BaseException) else f"<{type(value).__name__}>"
    )


def _own_message(record: logging.LogRecord) -> str:
    """The message of one of our own records with all its arguments. An exception is written as by `tell_error`."""
    if not isinstance(record.args, tuple):
        return record.getMessage()
    told = (_Replacement(tell_error(one)) if isinstance(one, BaseException) else one for one in record.args)
    try:
        return str(record.msg) % tuple(told) if record.args else str(record.msg)
    except (TypeError, ValueError):
        return str(record.msg)


def _exception(exc_info: object) -> tuple[BaseException | None, Any]:
    """The exception and the traceback of an `exc_info`, in any of the forms that it may have."""
    if exc_info is True:
        exc_info = sys.exc_info()
    one, trace = (exc_info[1], exc_info[2]) if isinstance(exc_info, (tuple, list)) else (exc_info, None)
    wrapped = getattr(one, "exc", None)  # Celery wraps an exception and adds a text
    one = wrapped if isinstance(wrapped, BaseException) else one
    return (one, trace) if isinstance(one, BaseException) else (None, None)


def _tell_value(value: object) -> str:
    """The form of a value that JSON cannot hold. Not `repr`, which may quote anything."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, PurePath):
        return str(value)
    return tell_error(value) if isinstance(value, BaseException) else f"<{type(value).__name__}>"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=_tell_value, ensure_ascii=False)
    is_plain = not isinstance(value, str) or _PLAIN_VALUE.fullmatch(text)
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def _hide_passwords(line: str) -> str:
    return _PASSWORD.sub(r"\1:***@", line) if "://" in line else line
