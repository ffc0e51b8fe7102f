"""The texts of a job as a person reads them: what was said, not how JSON writes it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from worker.cli.console import encode_json
from worker.storage.story import Content


def content_texts(content: Content) -> Iterator[tuple[str, str]]:
    """Headings with their texts, in the order of the job's life: the request, each message of it, what came back.

    Of a request its parameters are shown as JSON, its messages as text: line breaks are line breaks.
    """
    if content.user_metadata is not None:
        yield "metadata", encode_json(dict(content.user_metadata))
    request = parse_request(content.request)
    messages = request.get("messages") if isinstance(request, dict) else None
    if isinstance(messages, list):
        yield "request", encode_json({name: value for name, value in request.items() if name != "messages"})
        for number, message in enumerate(messages, start=1):
            yield from _message(number, message)
    else:
        yield "request", request if isinstance(request, str) else encode_json(request)
    if content.reasoning is not None:
        yield "reasoning", content.reasoning
    if content.answer is not None:
        yield "answer", content.answer
    if content.error is not None:
        yield "error body", content.error.decode("utf-8", "replace")


def parse_request(body: str) -> Any:
    """The decoded request; its text as it was sent where it cannot be decoded, as with a lone surrogate."""
    try:
        return orjson.loads(body)
    except ValueError:
        return body


def _message(number: int, message: object) -> Iterator[tuple[str, str]]:
    if not isinstance(message, Mapping):
        yield f"message {number}", encode_json(message)
        return
    parts = [*_parts(message.get("content"))]
    rest = {name: value for name, value in message.items() if name not in ("role", "content")}
    if rest:
        parts.append(encode_json(rest))
    yield f"message {number} · {message.get('role', 'no role')}", "\n".join(parts)


def _parts(content: object) -> Iterator[str]:
    """The text of a message; of one in parts, those that are text, and the others as JSON."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            is_text = isinstance(part, Mapping) and part.keys() == {"type", "text"}
            yield part["text"] if is_text and isinstance(part["text"], str) else encode_json(part)
    elif content is not None:
        yield encode_json(content)
