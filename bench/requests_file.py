"""Files of requests: what every contender is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

MODEL = "DeepSeek-V3.1"
_TEXT = "The kettle began it. Do not tell me what Mrs. Peerybingle said; I know better. " * 6


def make_body(number: int, *, max_tokens: int | None = 64) -> dict[str, Any]:
    """A request of about 600 bytes. `max_tokens` None: its answer is as long as it is."""
    body = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You summarise in one sentence."},
            {"role": "user", "content": f"Summarise document {number}:\n\n{_TEXT}"},
        ],
        "temperature": 0.7,
    }
    return body if max_tokens is None else body | {"max_tokens": max_tokens}


def write_requests(path: Path, count: int, *, max_tokens: int | None = 64) -> Path:
    """`path`, with `count` lines in the format of OpenAI's Batch API."""
    with path.open("wb") as file:
        for number in range(count):
            line = {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": make_body(number, max_tokens=max_tokens),
            }
            file.write(orjson.dumps(line) + b"\n")
    return path
