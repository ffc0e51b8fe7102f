"""Whether another user could have written the files of settings in this folder, or in the home.

A folder may come from anywhere: a download, a neighbour, /tmp.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from worker.files.private import find_distrust
from worker.settings.files import ENV_FILE, TOML_FILE


def find_problems_of_owners() -> list[str]:
    """Why `.env` and `antrean.toml` of this folder are not read: they say where the key goes."""
    problems = []
    for name in (ENV_FILE, TOML_FILE):
        if Path(name).is_dir():
            continue  # some keep a virtual environment in `.env`: it is no file of settings
        distrust = find_distrust(Path(name), root_is_trusted=True)
        if distrust is not None:
            way_out = (
                f"look at it, then `chmod go-w {name}`" if distrust.is_ended_by_chmod else "make your own"
            )
            problems.append(
                f"{name} of this folder {distrust.reason}, and says where your key goes: {way_out}"
            )
    return problems


def find_problems_of_home(home: Path) -> list[str]:
    """Why `home` is not used: a user who can write there decides what antrean does."""
    distrust = find_distrust(home)
    if distrust is None:
        return []
    way_out = ""
    if distrust.is_ended_by_chmod:
        way_out = f"`chmod go-w {shlex.quote(str(home))}` if you trust what is in it, or "
    return [f"ANTREAN_HOME: {home} {distrust.reason}: {way_out}choose a folder of your own"]
