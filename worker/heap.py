"""What antrean tells Python's garbage collector: what is loaded stays, and is not worth a look."""

from __future__ import annotations

import gc

_NEW_CONTAINERS = 5000  # between two looks at the young; Python's own 700 is less than one wave of messages


def keep_loaded() -> None:
    """Ends the time in which a command was loaded without the collector: it sees only what comes from now on.

    Does nothing in a process that was not begun so.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def settle_heap() -> None:
    """Takes all that is loaded by now out of the collector's sight, and has it look less often.

    A worker's modules stay for good, and each of its messages makes some hundred containers: looking through both
    again and again was a fifth of the CPU of a job. What is garbage by now is freed before.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_CONTAINERS)
