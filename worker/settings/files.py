"""What a folder's `.env` and `antrean.toml` say, each read once, and what is wrong in them, by line.

A line that cannot be read must not count as missing: the default would take its place, and key and documents would go
to another host. No sentence here quotes a value, which may be the key, nor a name that is none.
"""

from __future__ import annotations

import io
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv.parser import Binding, parse_stream
from dotenv.variables import Variable, parse_variables

ENV_FILE = ".env"
TOML_FILE = "antrean.toml"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_OURS = re.compile(r"\s*(?:export\s+)?ANTREAN_", re.IGNORECASE)
_LINE_END = re.compile(r"\r\n|\n|\r")
_HOW = "a line is NAME=value, and a quote that is opened is closed"


@dataclass(slots=True)
class FileReading:
    """Names and values as the file has them, in its order, and a sentence for each thing that is wrong with it."""

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_dotenv(path: Path, environ: Mapping[str, str]) -> FileReading:
    """The variables of a `.env` file; none where there is no such file. `${NAME}` in them is looked up in `environ`.

    A folder of that name counts as no file: it may be a virtual environment.
    """
    if path.is_dir() or not os.path.lexists(path):
        return FileReading()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        return FileReading(problems=[_unreadable(path, exc)])
    return parse_dotenv(text, environ, name=path.name)


def parse_dotenv(text: str, environ: Mapping[str, str], *, name: str = ENV_FILE) -> FileReading:
    """The variables of a `.env` file's text. Pure."""
    found = FileReading()
    known = dict(environ)
    for binding in parse_stream(io.StringIO(text)):
        problem = _problem_of(binding, known)
        if problem is not None:
            found.problems.append(f"{name}: line {_line_of(binding)} {problem}")
        elif binding.key is not None:
            value = "".join(atom.resolve(known) for atom in parse_variables(binding.value or ""))
            found.values[binding.key] = known[binding.key] = value
    return found


def read_toml(path: Path) -> FileReading:
    """The table of a TOML file; none where there is no such file."""
    if not os.path.lexists(path):
        return FileReading()
    try:
        return FileReading(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:
        return FileReading(problems=[_unreadable(path, exc)])


def _problem_of(binding: Binding, known: Mapping[str, str]) -> str | None:
    """The rest of a sentence, or None for a line that says what it seems to say."""
    if binding.error:
        return f"cannot be read: {_HOW}"
    if binding.key is None:
        return None
    # `NAME: http://host/?a=b` and `NAME value` may come as names.
    if binding.value is None or not _NAME.fullmatch(binding.key):
        return f"cannot be read: {_HOW}"
    is_ours = _OURS.match(binding.key) is not None
    _, *others = _LINE_END.split(binding.original.string.strip())
    if others and (is_ours or any(_OURS.match(line) for line in others)):
        return f"begins a value of several lines: is its quote closed? ({_HOW})"
    if is_ours and any(_unset_variables(binding.value, known)):
        return "has a ${…} of a variable that is not set: set it, or write ${NAME:-default}"
    return None


def _unset_variables(value: str, known: Mapping[str, str]) -> Iterator[str]:
    for atom in parse_variables(value):
        if isinstance(atom, Variable) and atom.default is None and atom.name not in known:
            yield atom.name


def _line_of(binding: Binding) -> int:
    # What the parser counts from may be blank lines before it.
    text = binding.original.string
    blank = text[: len(text) - len(text.lstrip())]
    return binding.original.line + len(_LINE_END.findall(blank))


def _unreadable(path: Path, exc: OSError | ValueError) -> str:
    if path.is_symlink() and not path.exists():
        return f"{path.name} is a link to a file that does not exist"
    if isinstance(exc, UnicodeError):
        return f"{path.name} cannot be read: it is not UTF-8 text"
    return f"{path.name} cannot be read: {getattr(exc, 'strerror', None) or exc}"
