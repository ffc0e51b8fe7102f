"""What is installed is what was asked for, to the byte."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ASKED = {one.name: one for one in map(Requirement, PROJECT["project"]["dependencies"])}
# The last releases with an advisory that reaches us: urllib3's GHSA-mf9v-mfxr-j63j (a compressed answer that grows past
# its cap), tornado's of 6.5 (requests that hold up Flower).
LAST_UNSAFE = {"urllib3": "2.6.3", "tornado": "6.5.5", "jinja2": "3.1.5"}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_the_lock_holds_what_is_asked_for_with_hashes_and_from_nowhere_in_particular(lock: str) -> None:
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    locked = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))
    for name, requirement in ASKED.items():
        assert requirement.specifier.contains(locked[name.partition("[")[0]]), name
    assert all("--hash=sha256:" in line for line in text.splitlines() if line and not line.startswith("#"))
    assert "://" not in text


@pytest.mark.parametrize(("name", "version"), LAST_UNSAFE.items())
def test_a_release_with_an_advisory_is_never_installed(name: str, version: str) -> None:
    assert not ASKED[name].specifier.contains(Version(version), prereleases=True)
