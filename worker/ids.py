"""Ids that sort by the time they were made, so that rows land at the end of their index."""

from __future__ import annotations

import os
import threading
import time

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """A new UUIDv7 (36 characters); within one process each sorts after the one before. Source: RFC 9562."""
    global _last
    with _lock:
        # 48 bits of milliseconds and 12 bits of their fraction, kept rising when the clock does not.
        stamp = time.time_ns() * 4096 // 1_000_000
        _last = stamp = max(stamp, _last + 1)
    tail = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    number = (stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | tail
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_batch_id() -> str:
    """A new id in the form of OpenAI's batch ids: `batch_` and 32 hexadecimal digits."""
    return "batch_" + new_id().replace("-", "")
