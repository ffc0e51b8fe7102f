"""What a log may say about an exception: its type, file names and line numbers, and its text if that is safe. Pure.

The text is safe for antrean's own errors and the operating system's. Any other text may quote a prompt (a KeyError, a
JSON decoder), a password (an address that cannot be parsed) or the values of an SQL statement. So may the variables of
its frames. This is invariant 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from worker.errors import AntreanError, InputError

_MOST_FRAMES = 40
# The texts of these are about a connection: host, port, and the system's reason.
_SPOKEN = {f"redis.exceptions.{name}" for name in ("ConnectionError", "TimeoutError", "AuthenticationError")}


def tell_error(exc: BaseException) -> str:
    """`KeyError`, or `ConnectionRefusedError: [Errno 111] Connection refused`: the text only if it is safe."""
    kind = type(exc)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    words = _words(exc)
    return f"{name}: {words}" if words else name


def tell_traceback(exc: BaseException, trace: Any = None) -> str:
    """The traceback of an exception and its causes, as Python writes it, but without source lines and unsafe texts.

    The innermost frame is last. `trace`: the traceback, if the exception no longer has it.
    """
    return "\n".join(_lines(exc, trace, set()))


def _words(exc: BaseException) -> str:
    if isinstance(exc, AntreanError):
        return "" if isinstance(exc, InputError) else str(exc)
    if isinstance(exc, OSError) and exc.errno is not None and exc.strerror:
        named = "" if exc.filename is None else f": {exc.filename!r}"
        return f"[Errno {exc.errno}] {exc.strerror}{named}"
    return str(exc) if f"{type(exc).__module__}.{type(exc).__name__}" in _SPOKEN else ""


def _lines(exc: BaseException, trace: Any, seen: set[int]) -> Iterator[str]:
    seen.add(id(exc))
    origin, joint = exc.__cause__, "which led to:"
    if origin is None and not exc.__suppress_context__:
        origin, joint = exc.__context__, "and while it was handled:"
    if origin is not None and id(origin) not in seen:
        yield from _lines(origin, None, seen)
        yield joint
    yield "Traceback (most recent call last):"
    frames = list(_frames(exc.__traceback__ or trace))
    if len(frames) > _MOST_FRAMES:
        yield f"  … {len(frames) - _MOST_FRAMES} more"
    yield from frames[-_MOST_FRAMES:]
    yield tell_error(exc)
    if isinstance(exc, BaseExceptionGroup):
        for one in exc.exceptions:
            if id(one) not in seen:
                yield from (f"  | {line}" for line in _lines(one, None, seen))


def _frames(trace: Any) -> Iterator[str]:
    while trace is not None:
        code = trace.tb_frame.f_code
        yield f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}'
        trace = trace.tb_next
