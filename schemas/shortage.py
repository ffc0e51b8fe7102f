"""What this machine has run out of: descriptors, memory, threads, ports. Never the endpoint's fault."""

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
_NO_THREAD = "can't start new thread"  # CPython has no type of its own for it


def is_local_shortage(exc: BaseException) -> bool:
    """Whether this exception itself, not its cause, says that this machine has run out of something."""
    if isinstance(exc, OSError):
        return exc.errno in _LOCAL
    return isinstance(exc, MemoryError) or (isinstance(exc, RuntimeError) and _NO_THREAD in str(exc))


def describe_shortage(exc: BaseException) -> str:
    """What this machine has run out of, for people."""
    if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
        return "this machine has no more open files for it (raise `ulimit -n`, or lower ANTREAN_CONCURRENCY)"
    if isinstance(exc, OSError) and exc.errno == errno.EADDRNOTAVAIL:
        return "this machine has no more local ports for it"
    if isinstance(exc, RuntimeError):
        return "this machine lets no more threads begin"
    return "this machine is out of memory for it"
