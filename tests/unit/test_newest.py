"""What `scripts/test --newest` asks the package index for, and what it says when there is none."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEWEST = runpy.run_path(str(ROOT / "scripts" / "newest.py"))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("celery>=5.7,<5.8", "celery>=5.7"),
        ("psycopg[binary]>=3.3,<3.4", "psycopg[binary]>=3.3"),
        ("types-pyyaml", "types-pyyaml"),
        ("uvloop>=0.23; sys_platform != 'win32'", "uvloop>=0.23 ; sys_platform != 'win32'"),
        ("a>=1,<2; python_version < '3.12'", "a>=1 ; python_version < '3.12'"),
    ],
)
def test_only_the_upper_bound_is_left_out(asked: str, expected: str) -> None:
    assert NEWEST["without_upper_bound"](asked) == expected


def test_what_the_pins_exclude_is_told_with_its_pin() -> None:
    found = NEWEST["find_beyond"](
        Path(sys.executable), ["pytest>=1,<2", "redis>=1", "a>=1; sys_platform == 'none'"]
    )
    assert len(found) == 1
    assert found[0].startswith("pytest ")
    assert "<2" in found[0]


@pytest.mark.full
@pytest.mark.slow
def test_without_an_index_it_says_so_and_fails_nobody(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, "-I", str(ROOT / "scripts" / "newest.py"), str(ROOT)],
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "newest: no package index that can be reached has what is installed now: not run\n"
