"""Who could have written what a command is about to believe: the files of this folder, and the home.

A folder may come from anywhere: a download, a neighbour, /tmp.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from worker.files import find_distrust

DOTENV = ".env"
TOML = "antrean.toml"
_PREFIX = "ANTREAN_"


def find_problems_of_owners() -> list[str]:
    """Why `.env` and `antrean.toml` of this folder are not read: they say where the key goes."""
    problems = []
    for name in (DOTENV, TOML):
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
    """Why `home` is not used: whoever can write there says what antrean does."""
    distrust = find_distrust(home)
    if distrust is None:
        return []
    way_out = f"`chmod go-w {home}` if you trust what is in it, or " if distrust.is_ended_by_chmod else ""
    return [f"{_PREFIX}HOME: {home} {distrust.reason}: {way_out}choose a folder of your own"]


def find_address_file() -> str | None:
    """The file of this folder that has the base URL, where the key is in the environment; None otherwise.

    Raises OSError or ValueError where a file cannot be read.
    """
    environ = {name.upper(): value for name, value in os.environ.items()}
    has_key = environ.get(f"{_PREFIX}API_KEY") or environ.get(f"{_PREFIX}API_KEY_FILE")
    if not has_key or environ.get(f"{_PREFIX}BASE_URL"):
        return None
    if Path(DOTENV).is_file():
        named = {name.upper(): value for name, value in dotenv_values(DOTENV, encoding="utf-8").items()}
        if named.get(f"{_PREFIX}BASE_URL"):
            return DOTENV
    return TOML if "base_url" in read_toml() else None


def read_toml() -> dict[str, Any]:
    """What `antrean.toml` says; nothing where there is none. Raises OSError or ValueError."""
    try:
        return tomllib.loads(Path(TOML).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
