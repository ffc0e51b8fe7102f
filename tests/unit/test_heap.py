"""What the worker tells Python's garbage collector and the C library's allocator. In a process of its own: it is told for the whole process."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


_ARENAS = """
import ctypes, sys, threading
from worker.heap import share_one_arena

libc = ctypes.CDLL(None)
if not hasattr(libc, "malloc_info"):
    sys.exit(77)
if sys.argv[1] == "shared":
    share_one_arena()
everyone = threading.Barrier(8)

def work():
    kept = [bytearray(5_000) for _ in range(50)]
    everyone.wait(20)

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fopen.restype = ctypes.c_void_p
told = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, told)
libc.fclose(told)
"""


def count_arenas(how: str) -> int:
    argv = [sys.executable, "-P", "-c", _ARENAS, how]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this C library does not tell of its arenas")
    assert done.returncode == 0, done.stderr
    return done.stdout.count("<heap nr=")


def test_all_threads_share_one_arena() -> None:
    assert count_arenas("shared") == 1
    assert count_arenas("each its own") > 1, "the test would see it"
