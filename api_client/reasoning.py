"""Splits a message into answer and reasoning. The caller keeps the raw text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from schemas.completion import CompletionMessage

_OPEN, _CLOSE = "<think>", "</think>"
_TAG = re.compile(r"</?think>")


@dataclass(frozen=True, slots=True)
class Reasoned:
    """The answer and the reasoning, each None if there is none. `is_unclosed`: the reasoning was cut off."""

    answer: str | None
    reasoning: str | None
    is_unclosed: bool = False


def split_reasoning(message: CompletionMessage) -> Reasoned:
    """The message's answer and reasoning.

    A `reasoning_content` or `reasoning` field with text is the reasoning. A `<think>` block at the beginning of the
    content is split off, too, and joined to it. Without such a field:

    - `<think>…</think>` counts only at the beginning of the content; later in the text it stays.
    - Tags nest: the `</think>` that brings the depth back to 0 ends the reasoning. If the depth never comes back to 0,
      as the reasoning mentions `<think>`, the last `</think>` ends it.
    - `<think>` without any `</think>`: no answer, `is_unclosed`.
    - `</think>` without `<think>` before it, as the chat template has the opening tag: all text before it is reasoning.

    Content in parts is the joined text of its parts; parts of a thinking type are reasoning, too. White space is
    stripped around the reasoning, and at the beginning of the answer.
    """
    text, thought, is_open = _split_parts(message.content)
    field = _reasoning_field(message)
    if thought is not None:
        # The same reasoning often comes twice, in parts and in a field.
        field = thought if field is None or field.strip() == thought else f"{field}\n\n{thought}"
    if text is None:
        return Reasoned(None, field, is_open)
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
    """The index of the closing tag of the leading block, or None if there is none."""
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
    extra = message.model_extra or {}
    for value in (message.reasoning_content, extra.get("reasoning"), extra.get("thinking")):
        if value is None:
            continue
        text = value if isinstance(value, str) else _text_of(value)
        if text:
            return text
    return None


def _split_parts(content: Any) -> tuple[str | None, str | None, bool]:
    """The text of a content, its reasoning (each None if there is none), and whether the reasoning was cut off."""
    if isinstance(content, str):
        return content, None, False
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return None, None, False
    thoughts = [part for part in content if _is_thought(part)]
    text = _text_of([part for part in content if not _is_thought(part)])
    thought = (_text_of(thoughts) or "").strip() or None
    if thought is not None and text is not None:
        text = text.lstrip()
    is_open = bool(thoughts) and text is None and thoughts[-1].get("closed") is False
    return text, thought, is_open


def _is_thought(part: Any) -> bool:
    """Whether a part is of type thinking or reasoning (Mistral, Anthropic, OpenAI), or marked as a thought (Gemini)."""
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    is_named = isinstance(kind, str) and any(
        word in kind.lower() for word in ("thinking", "reasoning", "thought")
    )
    return is_named or part.get("thought") is True


def _text_of(value: Any, depth: int = 0) -> str | None:
    """The joined texts of a part or a list of parts; None if there are none."""
    if isinstance(value, str):
        return value
    if depth > 4:
        return None
    if isinstance(value, list):
        found = [text for text in (_text_of(one, depth + 1) for one in value) if text is not None]
        return "".join(found) if found else None
    if not isinstance(value, dict):
        return None
    for name in ("text", "thinking", "reasoning", "content", "summary"):
        text = _text_of(value.get(name), depth + 1)
        if text is not None:
            return text
    return None
