"""Shortages of this machine: file descriptors, memory, threads, ports. They are never the endpoint's fault."""

from __future__ import annotations

import errno

_LOCAL = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EADDRNOTAVAIL,
    }
)
_NO_THREAD = "can't start new thread"  # CPython raises a plain RuntimeError with this text


def is_local_shortage(exc: BaseException) -> bool:
    """Whether this exception itself, and not its cause, shows such a shortage."""
    if isinstance(exc, OSError):
        return exc.errno in _LOCAL
    return isinstance(exc, MemoryError) or (isinstance(exc, RuntimeError) and _NO_THREAD in str(exc))


def find_shortage(exc: BaseException) -> BaseException | None:
    """The shortage that this exception shows, or one of those that it was raised from or while handling."""
    seen: BaseException | None = exc
    while seen is not None and not is_local_shortage(seen):
        seen = seen.__cause__ or seen.__context__
    return seen


def describe_shortage(exc: BaseException) -> str:
    """Describes the shortage for people."""
    if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
        return "this machine has no more open files for it (raise `ulimit -n`, or lower ANTREAN_CONCURRENCY)"
    if isinstance(exc, OSError) and exc.errno == errno.EADDRNOTAVAIL:
        return "this machine has no more local ports for it"
    if isinstance(exc, RuntimeError):
        return "this machine lets no more threads begin"
    return "this machine is out of memory for it"
