"""Reads the head of an answer strictly: where its body ends, and whether its connection can serve another call.

An incorrect answer is read as far as possible, because it was paid for. But its connection is used again only if the
head is correct: bytes that are left over would be taken for the answer to another job.
Source: RFC 9112, sections 4 to 6 and 9.3.
"""

from __future__ import annotations

import http.client
import io
import re
from typing import Any

from urllib3 import HTTPHeaderDict

LONGEST_LINE = 65_536
MOST_LINES = 200

_STATUS_LINE = re.compile(rb"(HTTP/1\.[01]) ([0-9]{3})(?: ([^\r\n\0]*))?\r\n\Z")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*\r\n\Z")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n\Z")
_LENGTH = re.compile(r"[0-9]{1,18}\Z")
_LENIENT_LENGTH = re.compile(r"\+?([0-9]{1,18})\Z")
_LISTS = frozenset({"content-length", "transfer-encoding", "content-encoding", "connection"})
_HARMLESS_OPTIONS = frozenset({"keep-alive", "upgrade", "te", "trailer", "transfer-encoding"})
_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_BODILESS = frozenset({101, 204, 304})


class UnsoundFraming(http.client.HTTPException):
    """The end of the body is not clear."""


class _Tap(io.RawIOBase):
    """The stream from which a response reads. Once it is shut, only buffered bytes can be read."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__()
        self._raw = raw
        self.is_shut = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        return None if self.is_shut else self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class FramedResponse(http.client.HTTPResponse):
    """http.client's response, whose head is read by our own strict code.

    Interim answers (1xx other than 101) are skipped, however many there are and however they are split into packets.
    `fields`: the final answer's header fields, names in lower case. `framing`: the fields that urllib3 gets.
    `is_spent`: the whole body was read, its end is certain, and nothing follows it.
    """

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._socket = sock
        self._tap = _Tap(self.fp.detach())
        self.fp = io.BufferedReader(self._tap)
        self._is_reusable = False
        self._has_ended = False  # True: the last chunk and its trailer were read
        self.fields: dict[str, str] = {}
        self.framing = HTTPHeaderDict()
        self.is_spent = False

    def begin(self) -> None:
        """Reads the final answer's head. Raises as http.client does, and UnsoundFraming."""
        while True:
            version, status, reason, is_plain = self._read_status_line()
            lines = self._read_field_lines()
            if status == 101 or not 100 <= status < 200:
                break
        self.code = self.status = status
        self.reason = reason
        self.version = 10 if version in ("HTTP/1.0", "HTTP/0.9") else 11
        self.fields, has_plain_fields = _parse_fields(lines)
        self._frame(status, is_plain=is_plain and has_plain_fields)

    def _read_status_line(self) -> tuple[str, int, str, bool]:
        """Version, status, reason, and whether the line is correct."""
        line = self.fp.readline(LONGEST_LINE + 1)
        if not line:
            raise http.client.RemoteDisconnected("the connection was closed without a response")
        plain = _STATUS_LINE.match(line)
        if plain is not None:
            reason = (plain[3] or b"").decode("latin-1").strip()
            return plain[1].decode(), _status(int(plain[2]), line), reason, True
        if len(line) > LONGEST_LINE:
            raise http.client.LineTooLong("status line")
        version, _, rest = line.decode("latin-1").strip().partition(" ")
        number, _, reason = rest.strip().partition(" ")
        if not version.startswith("HTTP/") or not (number.isascii() and number.isdigit()):
            raise http.client.BadStatusLine("not a status line")  # without its text, which may be an answer
        if not version.startswith("HTTP/1.") and version != "HTTP/0.9":
            raise http.client.UnknownProtocol(version[:20])
        return version, _status(int(number[:4]), line), reason.strip(), False

    def _read_field_lines(self) -> list[bytes]:
        """The lines before the empty one. A last line without a line break means that the head was cut off."""
        lines: list[bytes] = []
        while True:
            line = self.fp.readline(LONGEST_LINE + 1)
            if line in (b"\r\n", b"\n"):
                return lines
            if len(line) > LONGEST_LINE:
                raise http.client.LineTooLong("header line")
            lines.append(line)
            if not line:
                return lines
            if len(lines) > MOST_LINES:
                raise http.client.HTTPException(f"more than {MOST_LINES} header lines")

    def _frame(self, status: int, *, is_plain: bool) -> None:
        """Decides where the body ends (`chunked`, `length`), and whether the connection may be kept."""
        codings = _tokens(self.fields.get("transfer-encoding"))
        self.chunked = bool(codings) and codings[-1] == "chunked"
        self.chunk_left = None
        self.length = None
        said = self.fields.get("content-length")
        is_sound = is_plain
        if codings:
            is_sound = is_plain and codings == ["chunked"] and said is None
        elif said is not None:
            self.length = _content_length(said)
            is_sound = is_plain and _LENGTH.match(said) is not None
        else:
            is_sound = False
        if status in _BODILESS:
            self.chunked, self.length = False, 0
        self._is_reusable = (
            is_sound
            # Another answer may have been sent before the request was read. Then the server would read the rest of the
            # request as the next one, and its answer would go to the next job.
            and 200 <= status < 300
            and status not in (204, 205)
            and _stays_open(self.version, _tokens(self.fields.get("connection")))
        )
        self.will_close = not self._is_reusable
        if self.chunked:
            self.framing["transfer-encoding"] = "chunked"
        elif self.length is not None:
            self.framing["content-length"] = str(self.length)
        encodings = [one for one in codings if one in _CODINGS]
        if "content-encoding" in self.fields:
            encodings.insert(0, self.fields["content-encoding"])
        if encodings:
            self.framing["content-encoding"] = ", ".join(encodings)

    def _get_chunk_left(self) -> int | None:
        """The bytes left of the present chunk; None after the last. Raises IncompleteRead if a chunk is malformed."""
        left: int | None = self.chunk_left
        if left:
            return left
        if left is not None and self._safe_read(2) != b"\r\n":  # type: ignore[attr-defined]
            raise http.client.IncompleteRead(b"")
        size = _CHUNK_SIZE.match(self.fp.readline(LONGEST_LINE + 1))
        if size is None:
            raise http.client.IncompleteRead(b"")
        if not size[0].endswith(b"\r\n"):
            self._is_reusable = False
        left = int(size[1], 16)
        if left == 0:
            lines = self._read_field_lines()
            self._has_ended = not lines or lines[-1] != b""
            self._close_conn()
            left = None
        self.chunk_left = left
        return left

    def _close_conn(self) -> None:
        """Ends the body, whether it was read or not. Checks the buffer first, which does not exist afterwards."""
        is_whole = self._has_ended if self.chunked else self.length == 0
        if self.fp is not None and self._is_reusable and is_whole:
            self.is_spent = self._is_silent()
        super()._close_conn()  # type: ignore[misc]

    def _is_silent(self) -> bool:
        """Whether no bytes after the answer are buffered, here or in TLS.

        Makes no system call. The pool checks the socket right before it uses it again.
        """
        self._tap.is_shut = True
        pending = getattr(self._socket, "pending", None)
        return not self.fp.peek(1) and not (pending is not None and pending())


def _status(number: int, line: bytes) -> int:
    if not 100 <= number <= 999:
        raise http.client.BadStatusLine("not a status line")
    return number


def _parse_fields(lines: list[bytes]) -> tuple[dict[str, str], bool]:
    """The fields by name in lower case, and whether every line is correct.

    Of a repeated field the last one counts. Repeated fields that decide the framing are joined.
    """
    fields: dict[str, str] = {}
    is_plain = True
    last = ""
    for line in lines:
        plain = _FIELD.match(line)
        if plain is not None:
            last, value = plain[1].decode().lower(), plain[2].decode("latin-1")
        else:
            is_plain = False
            text = line.decode("latin-1")
            if text[:1] in (" ", "\t") and last:  # folded: it continues the line before
                fields[last] += f" {text.strip()}"
                continue
            name, colon, value = text.partition(":")
            last, value = name.strip().lower(), value.strip()
            if not colon or not last:
                last = ""
                continue
        if last in _LISTS and last in fields:
            value = f"{fields[last]}, {value}"
        fields[last] = value
    return fields, is_plain


def _tokens(value: str | None) -> list[str]:
    return [] if value is None else [token.strip(" \t").lower() for token in value.split(",")]


def _content_length(said: str) -> int | None:
    """The length; None if it is not valid (the body then ends with the connection). Raises UnsoundFraming."""
    found = {_LENIENT_LENGTH.match(one) for one in _tokens(said)}
    lengths = {None if one is None else int(one[1]) for one in found}
    if len(lengths) > 1:
        raise UnsoundFraming("the answer has several lengths")
    return lengths.pop()


def _stays_open(version: int, options: list[str]) -> bool:
    if not _HARMLESS_OPTIONS.issuperset(options):
        return False
    return version == 11 or "keep-alive" in options
