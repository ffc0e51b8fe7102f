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
    """What a person calls this input: the file's name, or plain words where it has none of its own."""
    if str(path) in _STANDARD_INPUT:
        return "standard input"
    if _is_read_once(path):
        return "a pipe" if path.is_fifo() else as_text(path)
    if _DESCRIPTOR.fullmatch(str(path)):
        real = Path(os.path.realpath(path))
        return as_text(FileName(real.name)) if real.exists() else "an open file"
    return as_text(FileName(path.name))


def is_stream(path: Path) -> bool:
    """Whether the path stands for what this process has open: it is no name that anything could be known by."""
    return str(path) in _STANDARD_INPUT or _DESCRIPTOR.fullmatch(str(path)) is not None


def is_folder(path: Path) -> bool:
    """Whether the path is a folder; what cannot be looked at is none, and whoever opens it says why."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


@contextmanager
def as_file(path: Path) -> Iterator[Path]:
    """A file that can be read again and again: what can be read only once is copied, and gone at the end.

    Raises InputError for what cannot be read to an end: a device, a socket, a pipe that nobody writes to.
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
        return False  # whoever opens it says why
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _read_chunks(path: Path) -> Iterator[bytes]:
    if str(path) in _STANDARD_INPUT:
        if sys.stdin is None:
            raise InputError("there is no standard input to read from")
        yield from _read_to_end(sys.stdin.buffer, "standard input")
        return
    try:
        # Without waiting: a pipe that nobody writes to would hold the opening for ever.
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
        except BlockingIOError:  # some parents leave their pipes non-blocking: this is not the end
            poll.poll()
            continue
        except OSError as exc:
            raise InputError(f"{name}: cannot be read ({why(exc)})") from None
        if not chunk:
            return
        yield chunk


def _wait_for_writer(descriptor: int, poll: select.poll, name: str) -> bytes:
    """Returns when somebody has opened the pipe to write; what was read meanwhile."""
    if os.get_blocking(descriptor):
        return b""  # it is standard input: whoever made it has its other end
    ends_at = time.monotonic() + _WRITER_WITHIN_S
    while not poll.poll(_LOOK_MS):
        try:
            # No writer reads as the end, a silent one as "not now".
            if chunk := os.read(descriptor, _CHUNK_BYTES):
                return chunk
        except BlockingIOError:
            return b""
        if time.monotonic() > ends_at:
            raise InputError(f"{name} is a pipe, and nobody has opened it to write: start its writer first")
    return b""


def _has_an_end(descriptor: int) -> bool:
    return os.isatty(descriptor) or os.fstat(descriptor).st_rdev == Path(os.devnull).stat().st_rdev
