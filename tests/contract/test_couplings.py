"""What docs/couplings.md lists is all there is, and is still there: else a sentence says what a library changed."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement

from tests.support.couplings import Coupling, find_couplings

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "couplings.md"


class Row(NamedTuple):
    file: str
    owner: str
    name: str
    why: str
    tests: tuple[str, ...]
    is_found: bool  # by a tool: in the first table


def read_rows() -> list[Row]:
    first, second = PAGE.read_text(encoding="utf-8").split("No tool finds the following uses")
    rows = []
    for text, is_found in ((first, True), (second, False)):
        for line in re.findall(r"^\| `.*$", text, re.MULTILINE):
            file, owner, names, why, tests = (cell.strip() for cell in line.strip("| ").split(" | "))
            for name in re.findall(r"`([^`]+)`", names):
                named = tuple(re.findall(r"`([^`]+)`", tests))
                rows.append(Row(file.strip("`"), owner.strip("`"), name, why, named, is_found))
    return rows


ROWS = read_rows()


@cache
def couplings() -> frozenset[Coupling]:
    return frozenset(find_couplings(ROOT))


def split(name: str) -> tuple[str, str]:
    """Owner and member of a name as the finder writes it."""
    owner, _, member = name.rpartition("." if "." in name.rpartition(":")[2] or ":" not in name else ":")
    return owner, member


def is_row_of(row: Row, found: Coupling) -> bool:
    owner, member = split(found.name)
    return (
        row.file == found.file
        and row.name == member
        and owner in (row.owner, row.owner.replace(":", "."), "?")
    )


def test_every_coupling_in_the_code_has_a_row() -> None:
    missing = [one for one in sorted(couplings()) if not any(is_row_of(row, one) for row in ROWS)]
    assert not missing, "docs/couplings.md lacks a row for: " + "; ".join(
        f"{one.file} ({one.kind} of {one.name})" for one in missing
    )


def test_every_row_is_of_something_in_the_code() -> None:
    stale = [row for row in ROWS if row.is_found and not any(is_row_of(row, one) for one in couplings())]
    assert not stale, "docs/couplings.md has rows that nothing uses any more: " + "; ".join(
        f"{row.file} ({row.owner}.{row.name})" for row in stale
    )


@pytest.mark.parametrize("file", sorted({row.file for row in ROWS}))
def test_the_file_of_a_row_exists(file: str) -> None:
    assert (ROOT / file).is_file()


@pytest.mark.parametrize("tests", sorted({name for row in ROWS for name in row.tests}))
def test_the_tests_that_are_named_exist(tests: str) -> None:
    folder = "tests" if "/" in tests else "tests/contract"
    assert (ROOT / folder / tests).is_file()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.owner}.{row.name}")
def test_what_we_rely_on_is_still_there(row: Row) -> None:
    module, _, qualified = row.owner.partition(":")
    package = module.partition(".")[0]
    sentence = (
        f"{row.owner}.{row.name} is gone from {package} {release(package)}: {row.file} relies on it "
        f"({row.why}). Mend that, or keep the upper bound in pyproject.toml"
    )
    try:
        owner: Any = importlib.import_module(module)
        for part in filter(None, qualified.split(".")):
            owner = getattr(owner, part)
    except (ImportError, AttributeError):
        pytest.fail(sentence)
    is_there = hasattr(owner, row.name) or re.search(rf"\b{row.name}\b", inspect.getsource(owner))
    assert is_there, sentence


def test_an_override_takes_what_the_library_passes() -> None:
    overrides = sorted(one for one in couplings() if one.kind == "override")
    assert overrides
    assert [sentence for one in overrides for sentence in find_misfits(one)] == []


def find_misfits(found: Coupling) -> Iterator[str]:
    """A sentence for each override of this name in its file that does not take what the library passes."""
    owner, member = split(found.name)
    module, _, qualified = owner.partition(":")
    theirs = inspect.getattr_static(getattr(importlib.import_module(module), qualified), member)
    if not inspect.isfunction(theirs):
        return  # an attribute or a property
    room = importlib.import_module(found.file.removesuffix(".py").replace("/", "."))
    base = getattr(importlib.import_module(module), qualified)
    for ours in vars(room).values():
        if not (
            inspect.isclass(ours) and issubclass(ours, base) and inspect.isfunction(vars(ours).get(member))
        ):
            continue
        if not accepts(vars(ours)[member], theirs):
            yield (
                f"{found.name} takes {inspect.signature(theirs)} in {module.partition('.')[0]} "
                f"{release(module.partition('.')[0])}, and {found.file} has {inspect.signature(vars(ours)[member])}"
            )


def accepts(ours: Any, theirs: Any) -> bool:
    """Whether whatever may be passed to `theirs` may be passed to `ours`."""
    given = list(inspect.signature(theirs).parameters.values())
    in_order = [one.name for one in given if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    by_name = {one.name: None for one in given if one.kind is one.KEYWORD_ONLY}
    last = {
        one.name: None for one in given if one.kind is one.POSITIONAL_OR_KEYWORD and one.name != in_order[0]
    }
    signature = inspect.signature(ours)
    try:
        signature.bind(*in_order, **by_name)
        signature.bind(in_order[0], **last, **by_name)
    except TypeError:
        return False
    return True


@cache
def release(package: str) -> str:
    """Its version; Python's own where it is of the standard library."""
    named = packages_distributions().get(package)
    return version(named[0]) if named else "of this Python"


def test_a_library_that_we_rely_on_so_has_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = {one.name: one for one in map(Requirement, project["project"]["dependencies"])}
    for package in sorted({row.owner.partition(".")[0].partition(":")[0] for row in ROWS} - {"http"}):
        assert any(one.operator == "<" for one in asked[package].specifier), (
            f"pyproject.toml: {package} has none"
        )
