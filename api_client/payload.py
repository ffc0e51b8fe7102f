"""The body that is sent: the stored one, with `"stream": false`. Pure."""

from __future__ import annotations

from typing import Any

import orjson

_OFF = b'{"stream":false,'


def switch_stream_off(body: bytes) -> bytes:
    """The body with `"stream": false`, once, and without `stream_options`.

    Some servers stream by default, and most refuse `stream_options` without streaming. A body that is no JSON object is
    returned unchanged.
    """
    # Stored bodies are written by orjson: quotes in texts are escaped, so a key can be found by its bytes.
    is_plain = body[:1] == b"{" and body[-1:] == b"}" and body[1:2] == b'"'
    if is_plain and b'"stream' not in body and b"\\u" not in body:
        return b"".join((_OFF, memoryview(body)[1:]))
    try:
        data: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(data, dict):
        return body
    if data.get("stream") is False and "stream_options" not in data:
        return body
    return orjson.dumps(
        {"stream": False} | {k: v for k, v in data.items() if k not in ("stream", "stream_options")}
    )
