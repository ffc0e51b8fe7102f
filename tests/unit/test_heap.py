"""What the worker tells Python's garbage collector. In a process of its own: it is told for the whole process."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import gc, weakref
import worker.settings
from worker.heap import settle_heap

class Cycle:
    def __init__(self):
        self.me = self

gc.disable()  # so that the cycle is still there
before = weakref.ref(Cycle())
assert before() is not None
gc.enable()
settle_heap()
assert before() is None, "what was garbage stayed for good"
assert len(gc.get_objects()) < 1000, "what was loaded is looked through again"

after = [weakref.ref(Cycle()) for _ in range(200_000)]
assert sum(one() is not None for one in after) < 20_000, "garbage is not freed any more"
"""


def test_what_is_loaded_is_not_looked_through_again_and_garbage_is_freed() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
