"""Makes the completion for a request, from the request's own text, so that results look real."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from api_client.simulator.tokens import count_tokens, cut_tokens, expected_usage, text_of

_SENTENCES = 2
_WORDS = 60
_READ_CHARACTERS = 2_000
_MORE = " more"  # one token
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n{2,}")


def compose_content(request: Mapping[str, Any]) -> str:
    """`<think>…</think>` and a summary: the first sentences of the last user message, and its number of words.

    The same request always gets the same text.
    """
    text = last_user_text(request["messages"])
    words = len(text.split())
    sentences = _SENTENCE_END.split(text[:_READ_CHARACTERS].strip(), maxsplit=_SENTENCES)[:_SENTENCES]
    opening = " ".join(" ".join(sentences).split()[:_WORDS])
    unit = "word" if words == 1 else "words"
    return (
        f"<think>The user wrote {words} {unit}. The opening says what it is about: I keep it.</think>"
        f"\n\n{opening or 'There is no text to summarise.'} ({words} {unit})"
    )


def compose_completion(
    request: Mapping[str, Any], *, completion_id: str, created: int, tokens: int | None = None
) -> dict[str, Any]:
    """A `chat.completion` for a valid `request`, cut off by its `max_completion_tokens` or `max_tokens`.

    A cut completion has the `finish_reason` "length", and may have no `</think>`. `created`: Unix seconds. `tokens`: so
    long is the answer, before it is cut off; None for as long as its text is.
    """
    content = compose_content(request)
    if tokens is not None:
        content = _of_length(content, tokens)
    finish_reason = "stop"
    limit = request.get("max_completion_tokens")
    if limit is None:
        limit = request.get("max_tokens")
    if limit is not None:
        cut = cut_tokens(content, limit)
        if cut is not None:
            content, finish_reason = cut, "length"
    message = {"content": content, "refusal": None, "tool_calls": None, "role": "assistant"}
    return {
        "id": completion_id,
        "choices": [{"finish_reason": finish_reason, "index": 0, "message": message}],
        "created": created,
        "model": request["model"],
        "object": "chat.completion",
        "usage": expected_usage(request, content),
    }


def _of_length(content: str, tokens: int) -> str:
    """`content`, cut off or gone on with, so that it has so many tokens."""
    missing = tokens - count_tokens(content)
    if missing < 0:
        return cut_tokens(content, tokens) or content
    return content + _MORE * missing


def last_user_text(messages: list[Mapping[str, Any]]) -> str:
    """The text of the last message of the user; without one, that of the last message."""
    for message in reversed(messages):
        if message.get("role") == "user":
            return text_of(message.get("content"))
    return text_of(messages[-1].get("content"))
