"""The bytes of an HTTP answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson

JSON = b"application/json"
HTML = b"text/html; charset=utf-8"
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `promised_length`: the Content-Length, if it must differ from the body's length; else None."""

    status: int
    body: bytes
    request_id: str
    content_type: bytes = JSON
    headers: bytes = b""  # whole lines, each ended by CRLF
    promised_length: int | None = None

    def encode(self, connection_header: bytes) -> bytes:
        """The bytes of head and body. `connection_header`: a whole line, or empty."""
        length = len(self.body) if self.promised_length is None else self.promised_length
        return b"%s\r\ncontent-type: %s\r\nx-request-id: %s\r\ncontent-length: %d\r\n%s%s\r\n%s" % (
            _STATUS_LINES[self.status],
            self.content_type,
            self.request_id.encode(),
            length,
            self.headers,
            connection_header,
            self.body,
        )


def flat_answer(status: int, message: str, request_id: str, headers: bytes = b"") -> Answer:
    """A refusal in the documented form: `{"message", "request_id"}`, without OpenAI's nesting."""
    body = orjson.dumps({"message": message, "request_id": request_id})
    return Answer(status, body, request_id, headers=headers)


def coded_answer(status: int, message: str, code: str, request_id: str, headers: bytes = b"") -> Answer:
    """A refusal in OpenAI's form: an `error` with a message and a code."""
    body = orjson.dumps({"error": {"message": message, "type": code, "param": None, "code": code}})
    return Answer(status, body, request_id, headers=headers)


def json_answer(value: Any, request_id: str) -> Answer:
    """A 200 with `value` as JSON."""
    return Answer(200, orjson.dumps(value), request_id)


def retry_after_headers(seconds: float) -> bytes:
    """`Retry-After` in whole seconds, rounded up as HTTP requires; and `retry-after-ms` if that is more exact."""
    whole = math.ceil(seconds)
    lines = b"retry-after: %d\r\n" % whole
    return lines if whole == seconds else lines + b"retry-after-ms: %d\r\n" % math.ceil(seconds * 1000)
