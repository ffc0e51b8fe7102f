"""Ids that sort by the time they were made, so that rows land at the end of their index."""

from __future__ import annotations

import os
import threading
import time
from struct import unpack

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """A new UUIDv7 (36 characters); within one process each sorts after the one before. Source: RFC 9562."""
    return _write(_reserve(1), int.from_bytes(os.urandom(8)))


def new_ids(count: int) -> list[str]:
    """As many new ids, rising. For bulk: the system is asked for randomness once, which is most of an id's cost."""
    first = _reserve(count)
    tails = unpack(f">{count}Q", os.urandom(8 * count))
    return [_write(stamp, tail) for stamp, tail in enumerate(tails, start=first)]


def new_batch_id() -> str:
    """A new id in the form of OpenAI's batch ids: `batch_` and 32 hexadecimal digits."""
    return "batch_" + new_id().replace("-", "")


def _reserve(count: int) -> int:
    """The first of `count` stamps that follow each other: 48 bits of milliseconds, 12 of their fraction."""
    global _last
    with _lock:
        first = max(time.time_ns() * 4096 // 1_000_000, _last + 1)  # rising also when the clock is not
        _last = first + count - 1
    return first


def _write(stamp: int, tail: int) -> str:
    tail = tail & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    text = f"{(stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | tail:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
