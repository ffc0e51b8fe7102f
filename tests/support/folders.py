"""Where tests have their folders: on the disk, or in memory, which has no disk to wait for at each commit."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 << 30
_root = Path("/tmp")


def use_memory() -> Path:
    """Has all folders made in memory from now on, where this machine has room and can run programs there. Their root."""
    global _root
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK | os.X_OK):
        runs_nothing = os.statvfs(_MEMORY).f_flag & getattr(os, "ST_NOEXEC", 0)
        if not runs_nothing and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES:
            _root = _MEMORY
    return _root


def make_short_folder() -> Path:
    """A new folder with a short name: a unix socket's path holds about 100 characters; pytest's own folders are longer."""
    return Path(tempfile.mkdtemp(prefix="an", dir=_root))
