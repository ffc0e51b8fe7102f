"""The simulator's tokenizer. It is simple and public, so that a test can compute the expected usage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# A token is a run of letters, digits and underscores, or one other character that is not white space.
_TOKEN = re.compile(r"\w+|[^\w\s]")


def count_tokens(text: str) -> int:
    """The number of tokens in `text`: each word and each punctuation mark is one, white space is none."""
    return len(_TOKEN.findall(text))


def cut_tokens(text: str, limit: int) -> str | None:
    """`text` up to the end of its token number `limit` (1-based); None if it has no more tokens than `limit`."""
    end = 0
    for position, token in enumerate(_TOKEN.finditer(text)):
        if position == limit:
            return text[:end]
        end = token.end()
    return None


def text_of(content: object) -> str:
    """The text of a message's `content`: the string itself, or its text parts joined by line breaks; else empty."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def expected_usage(request: Mapping[str, Any], content: str) -> dict[str, Any]:
    """The `usage` that the simulator answers for `request` (the decoded body) and the `content` it sent.

    Prompt tokens are the tokens of all messages' texts. Nothing is added for roles or messages.
    """
    prompt_tokens = sum(count_tokens(text_of(message.get("content"))) for message in request["messages"])
    completion_tokens = count_tokens(content)
    return {
        "completion_tokens": completion_tokens,
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens_details": None,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
    }
