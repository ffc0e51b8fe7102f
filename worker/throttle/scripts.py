"""The scripts that the broker runs, as texts."""

from __future__ import annotations

from importlib.resources import files


def read_script(name: str) -> str:
    """The text of a .lua file of this package."""
    return files("worker.throttle").joinpath(name).read_text(encoding="utf-8")
