"""The answer and the reasoning of a message, apart. The raw text stays with the caller."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from schemas.completion import CompletionMessage

_OPEN, _CLOSE = "<think>", "</think>"
_TAG = re.compile(r"</?think>")


@dataclass(frozen=True, slots=True)
class Reasoned:
    """`answer` is None where no answer came; `is_unclosed` tells a reasoning that was cut off."""

    answer: str | None
    reasoning: str | None
    is_unclosed: bool = False


def split_reasoning(message: CompletionMessage) -> Reasoned:
    """The message's answer and reasoning.

    A `reasoning_content` or `reasoning` field that holds text is the reasoning; a `<think>` block that begins
    the content is split off besides and joined to it. Without such a field:

    - `<think>…</think>` counts only at the beginning of the content; further on it is text and stays.
    - Tags nest: the close that brings the depth back to 0 ends the reasoning. Where the depth never comes
      back (the reasoning talks about `<think>`), the last `</think>` ends it.
    - `<think>` without any close: no answer, `is_unclosed`.
    - `</think>` with no `<think>` before it (a template that swallowed the opening tag): all before it is
      reasoning.

    Content in parts is the text of its parts, joined. Reasoning is stripped, an answer only at its beginning.
    """
    text = _text_of(message.content)
    field = _reasoning_field(message)
    if text is None:
        return Reasoned(None, field)
    if field is None:
        return _split(text)
    if not text.lstrip().startswith(_OPEN):
        return Reasoned(text, field)
    inner = _split(text)
    joined = f"{field}\n\n{inner.reasoning}" if inner.reasoning else field
    return Reasoned(inner.answer, joined, inner.is_unclosed)


def _split(text: str) -> Reasoned:
    body = text.lstrip()
    if body.startswith(_OPEN):
        end = _end_of_reasoning(body)
        if end is None:
            return Reasoned(None, body[len(_OPEN) :].strip() or None, is_unclosed=True)
        return _cut(body[len(_OPEN) : end], body[end:])
    close = text.find(_CLOSE)
    if close >= 0 and _OPEN not in text[:close]:
        return _cut(text[:close], text[close:])
    return Reasoned(text, None)


def _cut(reasoning: str, rest: str) -> Reasoned:
    return Reasoned(rest[len(_CLOSE) :].lstrip(), reasoning.strip() or None)


def _end_of_reasoning(body: str) -> int | None:
    """Where the closing tag of the leading block begins, or None where there is none."""
    depth = 0
    last: int | None = None
    for tag in _TAG.finditer(body):
        if tag.group() == _OPEN:
            depth += 1
            continue
        depth -= 1
        last = tag.start()
        if depth == 0:
            return last
    return last


def _reasoning_field(message: CompletionMessage) -> str | None:
    for value in (message.reasoning_content, (message.model_extra or {}).get("reasoning")):
        if isinstance(value, str) and value:
            return value
    return None


def _text_of(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    found = [text for text in texts if isinstance(text, str)]
    return "".join(found) if found else None
