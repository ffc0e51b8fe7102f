"""Lua lies in files of its own: each says what its keys and arguments are, and each goes along in the wheel."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "api_client", "worker")
SCRIPTS = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.lua"))


def test_there_are_scripts() -> None:
    assert {path.name for path in SCRIPTS} >= {
        "take.lua",
        "put_back.lua",
        "take_probe.lua",
        "answer_probe.lua",
        "leave_probe.lua",
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_documents_each_key_and_argument_that_it_uses(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head, code = re.match(r"((?:--[^\n]*\n)+)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    for name, number in sorted(set(re.findall(r"\b(KEYS|ARGV)\[(\d+)\]", code))):
        assert f"{name}[{number}]" in head, f"{path.name} does not say what {name}[{number}] is"
    assert "Answers" in head


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_in_the_wheel(path: Path) -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    assert any(fnmatch(path.name, pattern) for pattern in patterns)
    assert (path.parent / "__init__.py").is_file(), "package data is taken from packages only"


def test_no_script_is_in_a_string() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert "redis.call(" not in path.read_text(encoding="utf-8"), f"{path}: put it in a .lua file"
