"""Whether a disk has room left, so that a full one is called by its name, and not by what it breaks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

FULL_BELOW_BYTES = 256 * 1024  # a ledger's log, a result, a line of a log: nothing of it fits any more


def describe_full_disk(folders: Iterable[Path]) -> str | None:
    """The rest of a sentence about the first of these folders whose disk is full, None where all have room.

    A folder that cannot be asked is left out: whoever writes there says why it cannot.
    """
    for folder in folders:
        try:
            facts = os.statvfs(folder)
        except OSError:
            continue
        # The last blocks of some disks are kept for root.
        blocks = facts.f_bfree if os.geteuid() == 0 else facts.f_bavail
        if facts.f_blocks and blocks * facts.f_frsize < FULL_BELOW_BYTES:
            return f"the disk of {folder} is full: make room on it"
    return None
