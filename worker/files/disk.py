"""Finds full disks, so that a message names the full disk and not one of the errors that follow from it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

FULL_BELOW_BYTES = 256 * 1024  # with less, the ledger's write-ahead log or a result does not fit


def describe_full_disk(folders: Iterable[Path]) -> str | None:
    """The end of a sentence about the first of these folders whose disk is full; None if all have room.

    A folder that cannot be examined is skipped: writing there will give its own error.
    """
    for folder in folders:
        try:
            facts = os.statvfs(folder)
        except OSError:
            continue
        # Some file systems reserve their last blocks for root.
        blocks = facts.f_bfree if os.geteuid() == 0 else facts.f_bavail
        if facts.f_blocks and blocks * facts.f_frsize < FULL_BELOW_BYTES:
            return f"the disk of {folder} is full: make room on it"
    return None
