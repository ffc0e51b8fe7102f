"""The body that is sent: the stored one, with `"stream": false`, and a priority if that is told. Pure."""

from __future__ import annotations

from typing import Any

import orjson

_OFF = b'{"stream":false,'
_PRIORITY = b'"priority"'


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


def put_priority(body: bytes, priority: int) -> bytes:
    """The body with this `priority`, unless it has one of its own. A body that is no JSON object is unchanged."""
    is_plain = body[:1] == b"{" and body[-1:] == b"}" and body[1:2] == b'"'
    if is_plain and _PRIORITY not in body and b"\\u" not in body:
        return b"".join((b'{"priority":%d,' % priority, memoryview(body)[1:]))
    try:
        data: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(data, dict) or "priority" in data:
        return body
    return orjson.dumps({"priority": priority} | data)
