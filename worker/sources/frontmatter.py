"""The front matter of a prompt: the YAML between two `---` lines. It sets fields of the request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import yaml

KEYS = ("model", "temperature", "system", "max_tokens", "options")
_FENCE = "---"
_NOT_OPTIONS = {
    "model": "belongs at the top of the front matter",
    "temperature": "belongs at the top of the front matter",
    "max_tokens": "belongs at the top of the front matter",
    "system": "belongs at the top of the front matter",
    "messages": "is made from the prompt itself",
}


@dataclass(frozen=True, slots=True)
class FrontMatter:
    """Fields of the request. None: the front matter does not set it. `options`: further fields of the body."""

    model: str | None = None
    temperature: float | None = None
    system: str | None = None
    max_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def request_fields(self) -> dict[str, Any]:
        """The fields of the request body, except the messages."""
        said = {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in said.items() if value is not None} | dict(self.options)


@dataclass(frozen=True, slots=True)
class Parts:
    """The two parts of a prompt file. `front`: None if there is none. `body_line`: the body's first line, 1-based."""

    front: str | None
    body: str
    body_line: int
    is_closed: bool = True


def split_front_matter(source: str) -> Parts:
    """The two parts of a prompt file. If an opening `---` is never closed, all of the file is front matter."""
    lines = source.splitlines(keepends=True)
    if not lines or lines[0].rstrip() != _FENCE:
        return Parts(None, source, 1)
    for number, line in enumerate(lines[1:], start=2):
        if line.rstrip() == _FENCE:
            return Parts("".join(lines[1 : number - 1]), "".join(lines[number:]), number + 1)
    return Parts("".join(lines[1:]), "", len(lines) + 1, is_closed=False)


def parse_front_matter(text: str) -> tuple[FrontMatter, list[str]]:
    """The front matter of these YAML lines, and every problem in it. With a problem, its values must not be used."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        return FrontMatter(), [_describe(exc)]
    if data is None:
        return FrontMatter(), []
    if not isinstance(data, dict) or not isinstance(node, yaml.MappingNode):
        return FrontMatter(), ["front matter: must be `key: value` lines"]
    names = [str(key.value) for key, _ in node.value]
    problems = [f"{name}: given twice" for name in sorted({name for name in names if names.count(name) > 1})]
    problems += [
        f"unknown key {key!r} in the front matter; known are {', '.join(KEYS)}"
        " (further request fields go under options)"
        for key in data
        if key not in KEYS
    ]
    problems += _check_values(data)
    if problems:
        return FrontMatter(), problems
    return FrontMatter(**{key: value for key, value in data.items() if value is not None}), []


def _check_values(data: Mapping[Any, Any]) -> list[str]:
    problems = []
    for key in ("model", "system"):
        value = data.get(key)
        if value is not None and not (isinstance(value, str) and value.strip()):
            problems.append(f"{key}: must be text")
    temperature = data.get("temperature")
    # A setting says whether a temperature of 0 may be sent: `Prompt.check` checks that.
    if temperature is not None and not _is_number(temperature):
        problems.append("temperature: must be a number greater than 0")
    max_tokens = data.get("max_tokens")
    if max_tokens is not None and not (_is_number(max_tokens) and max_tokens == int(max_tokens) >= 1):
        problems.append("max_tokens: must be a whole number, 1 or more")
    elif isinstance(max_tokens, float):
        problems.append("max_tokens: must be written without a decimal point")
    return problems + _check_options(data.get("options"))


def _check_options(options: Any) -> list[str]:
    if options is None:
        return []
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        return ["options: must be a mapping of request fields, such as `seed: 7`"]
    problems = [f"options.{key}: {_NOT_OPTIONS[key]}" for key in options if key in _NOT_OPTIONS]
    for key, value in options.items():
        try:
            orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATETIME)
        except orjson.JSONEncodeError:
            problems.append(f"options.{key}: must be a JSON value (dates need quotes)")
    return problems


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


def _describe(exc: yaml.YAMLError) -> str:
    if isinstance(exc, yaml.MarkedYAMLError) and exc.problem_mark is not None:
        return f"front matter, line {exc.problem_mark.line + 2}: {exc.problem or 'not YAML'}"
    return f"front matter: not YAML ({' '.join(str(exc).split())[:120]})"
