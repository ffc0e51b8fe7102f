"""Input that can be read only once: standard input, a pipe, an open file descriptor."""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from worker.errors import InputError
from worker.files.names import FileName, as_text
from worker.sources.problems import why

_CHUNK_BYTES = 1024 * 1024
_WRITER_WITHIN_S = 30.0
_LOOK_MS = 200
_STANDARD_INPUT = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
_DESCRIPTOR = re.compile(r"/dev/fd/\d+|/proc/(?:self|\d+)/fd/\d+")


def name_input(path: Path) -> str:
    """The name of this input in messages: the file's name, or plain words such as "standard input"."""
    if str(path) in _STANDARD_INPUT:
        return "standard input"
    if _is_read_once(path):
        return "a pipe" if path.is_fifo() else as_text(path)
    if _DESCRIPTOR.fullmatch(str(path)):
        real = Path(os.path.realpath(path))
        return as_text(FileName(real.name)) if real.exists() else "an open file"
    return as_text(FileName(path.name))


def is_stream(path: Path) -> bool:
    """Whether the path means an open descriptor of this process. Such a path identifies no file."""
    return str(path) in _STANDARD_INPUT or _DESCRIPTOR.fullmatch(str(path)) is not None


def is_folder(path: Path) -> bool:
    """Whether the path is a folder. False on an error: the caller opens the path next and reports it."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


@contextmanager
def as_file(path: Path) -> Iterator[Path]:
    """A file that can be read several times. Input that can be read only once is copied; the copy is removed on exit.

    Raises InputError for input without an end: a device, a socket, a pipe without a writer.
    """
    if not _is_read_once(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as copy:
        try:
            for chunk in _read_chunks(path):
                copy.write(chunk)
            copy.flush()
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            folder = tempfile.gettempdir()
            raise InputError(
                f"{name_input(path)} does not fit into {folder} ({why(exc)}): save it to a file, or set TMPDIR"
            ) from None
        yield Path(copy.name)


def read_input(path: Path) -> bytes:
    """All bytes of a file or a pipe. Raises InputError as `as_file` does, OSError for a file."""
    return b"".join(_read_chunks(path)) if _is_read_once(path) else path.read_bytes()


def _is_read_once(path: Path) -> bool:
    if str(path) in _STANDARD_INPUT:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False  # the caller opens the path next and reports the error
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _read_chunks(path: Path) -> Iterator[bytes]:
    if str(path) in _STANDARD_INPUT:
        if sys.stdin is None:
            raise InputError("there is no standard input to read from")
        yield from _read_to_end(sys.stdin.buffer, "standard input")
        return
    try:
        # Non-blocking: to open a pipe without a writer would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({why(exc)})") from None
    with open(descriptor, "rb", buffering=0, closefd=True) as file:
        yield from _read_to_end(file, str(path))


def _read_to_end(file: BinaryIO, name: str) -> Iterator[bytes]:
    descriptor = file.fileno()
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISBLK(kind) or (stat.S_ISCHR(kind) and not _has_an_end(descriptor)):
        raise InputError(f"{name} is a device: name a file")
    if stat.S_ISDIR(kind):
        raise InputError(f"{name} is a folder: name a file")
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    first = _wait_for_writer(descriptor, poll, name) if stat.S_ISFIFO(kind) else None
    if first:
        yield first
    while True:
        try:
            chunk = os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:  # some parent processes make their pipes non-blocking: this is not the end
            poll.poll()
            continue
        except OSError as exc:
            raise InputError(f"{name}: cannot be read ({why(exc)})") from None
        if not chunk:
            return
        yield chunk


def _wait_for_writer(descriptor: int, poll: select.poll, name: str) -> bytes:
    """Waits until a process has opened the pipe to write. Returns the bytes that were read meanwhile."""
    if os.get_blocking(descriptor):
        return b""  # standard input: the process that made the pipe holds its other end
    ends_at = time.monotonic() + _WRITER_WITHIN_S
    while not poll.poll(_LOOK_MS):
        try:
            # Without a writer, read() returns b""; with a silent writer it raises BlockingIOError.
            if chunk := os.read(descriptor, _CHUNK_BYTES):
                return chunk
        except BlockingIOError:
            return b""
        if time.monotonic() > ends_at:
            raise InputError(f"{name} is a pipe, and nobody has opened it to write: start its writer first")
    return b""


def _has_an_end(descriptor: int) -> bool:
    return os.isatty(descriptor) or os.fstat(descriptor).st_rdev == Path(os.devnull).stat().st_rdev
