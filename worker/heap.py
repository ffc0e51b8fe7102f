"""What antrean tells Python's garbage collector and the C library's allocator about a process with many threads."""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8  # of glibc's malloc.h
_NEW_CONTAINERS = 5000  # between two looks at the young; Python's own 700 is less than one wave of messages


def keep_loaded() -> None:
    """Ends the time in which a command was loaded without the collector: it sees only what comes from now on.

    Does nothing in a process that was not begun so.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def share_one_arena() -> None:
    """Has all threads allocate from one arena. Call it before they begin.

    glibc gives threads arenas of their own, eight for each core, so that they do not wait for each other. Here they
    wait for the interpreter's lock anyway, and what is free in one arena is of no use to a thread of another. Does
    nothing where the C library has no such choice.
    """
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None:
        choose(_M_ARENA_MAX, 1)


def settle_heap() -> None:
    """Takes all that is loaded by now out of the collector's sight, and has it look less often.

    A worker's modules stay for good, and each of its messages makes some hundred containers: looking through both
    again and again was a fifth of the CPU of a job. What is garbage by now is freed before.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_CONTAINERS)
