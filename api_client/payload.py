"""The body that is sent: the stored one, with `"stream": false` in it. Pure."""

from __future__ import annotations

from typing import Any

import orjson

_OFF = b'{"stream":false,'


def switch_stream_off(body: bytes) -> bytes:
    """The body with `"stream": false` in it, once, and without `stream_options`.

    Some servers stream unless they are told not to, and most refuse `stream_options` where nothing streams. A body
    that is no JSON object comes back as it was.
    """
    # Stored bodies are written by orjson: a quote in a text is escaped, so a key can be looked for as bytes.
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
