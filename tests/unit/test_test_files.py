"""All test files can be run in one go."""

from __future__ import annotations

from collections import Counter

from tests.support.processes import ROOT


def test_no_two_test_files_have_the_same_name() -> None:
    """The folders are no packages, so pytest would take one file for the other, and stop."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(names) > 100
    assert [name for name, count in names.items() if count > 1] == []
