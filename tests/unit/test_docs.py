"""The pages say where things are, and they are there: links, anchors, files, modules, tests, rooms and settings."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "deploy/*.md", "examples/*.md")
    for page in ROOT.glob(pattern)
)
CODE = sorted(
    page for top in ("worker", "api_client", "schemas", "tests") for page in ROOT.glob(f"{top}/**/*.py")
)
MAP = ROOT / "docs/architecture.md"
# Made when something runs.
NOT_IN_THE_REPOSITORY = {"bench/results", "deploy/secrets"}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-"))
    return found


def links(page: Path) -> Iterator[str]:
    """What the page links to in this repository."""
    for target in re.findall(r"\[[^]]*\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            yield target


def quoted(page: Path, pattern: str) -> list[str]:
    """What stands in backticks on the page and has this form as a whole."""
    return [one for one in re.findall(r"`([^`\n]+)`", prose(page)) if re.fullmatch(pattern, one)]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_of_a_page_leads_to_a_file_of_the_repository_and_to_a_heading_that_is_there(
    page: Path,
) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", [one for one in PAGES if one.parent.name != "adr"], ids=named)
def test_every_file_module_and_test_that_a_page_names_is_there(page: Path) -> None:
    """A decision (`docs/adr/`) names the files of its time."""
    for path in quoted(
        page, r"(?:worker|api_client|schemas|tests|scripts|docs|bench|deploy|examples)/[\w./-]*"
    ):
        assert path.rstrip("/") in NOT_IN_THE_REPOSITORY or (ROOT / path).exists(), path
    for module in quoted(page, r"(?:worker|api_client|schemas)(?:\.\w+)+"):
        file = ROOT / module.replace(".", "/")
        is_event = any(f'"{module}"' in one.read_text(encoding="utf-8") for one in CODE)
        assert file.is_dir() or file.with_suffix(".py").exists() or is_event, module
    for name in quoted(page, r"test_\w+(?:\.py)?"):
        if name.endswith(".py"):
            assert list(ROOT.glob(f"tests/**/{name}")), name
        else:
            assert name in names_of_tests(), name


@cache
def names_of_tests() -> set[str]:
    """The names of all test functions."""
    files = ROOT.glob("tests/**/test_*.py")
    return {
        name for one in files for name in re.findall(r"^def (test_\w+)", one.read_text("utf-8"), re.MULTILINE)
    }


def test_no_page_and_no_code_speaks_of_a_page_that_is_not_in_the_repository() -> None:
    for file in [*PAGES, *CODE]:
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w/.])[A-Z][A-Z_]+\.md\b", text):
            assert (ROOT / name).exists(), f"{named(file)} speaks of {name}"
        for name in re.findall(r"\bdocs/(?:adr/\d{4}|\w+\.md)", text):
            assert list(ROOT.glob(f"{name}*")), f"{named(file)} speaks of {name}"


def rooms() -> set[str]:
    """The folders and modules of `worker/`, as the map names them."""
    folders = {f"worker/{one.name}/" for one in (ROOT / "worker").iterdir() if (one / "__init__.py").exists()}
    modules = {f"worker/{one.name}" for one in (ROOT / "worker").glob("*.py")} - {"worker/__init__.py"}
    return folders | modules


def section(page: Path, heading: str) -> str:
    """What stands below a heading, up to the next one of its rank."""
    rank = heading.split(" ", 1)[0]
    return page.read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[1].split(f"\n{rank} ", 1)[0]


def test_every_room_of_the_worker_is_in_the_map_and_the_map_has_no_other() -> None:
    rows = re.findall(r"^\| (`worker/.*?) \|", section(MAP, "## The rooms"), re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert set(listed) - {"worker/"} == rooms()
    assert len(listed) == len(set(listed))


def test_the_map_shows_the_layers_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one.get("containers") == ["worker"])
    assert "```text\n" + "\n".join(layers) + "\n```" in section(MAP, "## What may import what")


def test_every_invariant_in_the_map_has_the_test_that_is_named_after_it() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| `(\w+)` \|$", section(MAP, "## Invariants"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 11))
    for number, name in rows:
        assert name.startswith(f"test_invariant_{number}_")
    assert {name for _, name in rows} == {
        name for name in names_of_tests() if name.startswith("test_invariant_")
    }


def test_a_strangers_three_questions_are_answered_by_the_first_table_of_the_map() -> None:
    """Where does a job end? What happens on a 402? What would I change to add a source?"""
    table = section(MAP, "## Where do I look?")
    answers = dict(re.findall(r"^\| (.*?) \| (.*) \|$", table, re.MULTILINE))
    assert "`worker/storage/transitions.py`" in answers["Where does a job end?"]
    assert "answers.md#the-quota-a-402" in answers["What happens on a 402, or any other answer?"]
    assert "worker/sources/" in answers["What do I change to add a source?"]
    assert "source of requests" in section(MAP, "## Where to put a new thing")


@pytest.mark.parametrize(
    ("first_guess", "pointer"),
    [
        ("schemas/job.py", "worker/storage/transitions.py"),
        ("worker/storage/__init__.py", "transitions.py"),
        ("docs/states.md", "worker/storage/transitions.py"),
        ("api_client/answers.py", "docs/answers.md"),
        ("schemas/failure.py", "docs/answers.md"),
        ("worker/policy/retry.py", "docs/answers.md"),
        ("worker/sources/__init__.py", "docs/architecture.md"),
        ("worker/sources/__init__.py", "worker/operations/run_input.py"),
        ("worker/operations/run_input.py", "open_input"),
    ],
)
def test_the_file_that_a_stranger_opens_first_names_the_next(first_guess: str, pointer: str) -> None:
    assert pointer in "\n".join((ROOT / first_guess).read_text(encoding="utf-8").splitlines()[:40])


def test_the_map_names_every_module_that_ends_jobs() -> None:
    """`test_transitions_only.py` sees to it that these are all."""
    listed = set(re.findall(r"`(worker/storage/\w+\.py)`", section(MAP, "## Where a job ends")))
    ends = re.compile(r"^from worker\.storage\.transitions import|^class IllegalMove", re.MULTILINE)
    storage = [one for one in CODE if one.parent == ROOT / "worker/storage"]
    assert listed == {named(one) for one in storage if ends.search(one.read_text("utf-8"))}


def test_the_readme_names_every_setting() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [
        f"ANTREAN_{name.upper()}" for name in Settings.model_fields if f"`ANTREAN_{name.upper()}`" not in page
    ]
    assert not missing


def test_every_page_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    queue = [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        seen.add(page)
        found = {
            (page.parent / target.partition("#")[0]).resolve() for target in links(page) if target[0] != "#"
        }
        # A link to a folder shows what is in it.
        inside = {one for folder in found if folder.is_dir() for one in folder.glob("*.md")}
        queue += [
            one for one in found | inside if one.suffix == ".md" and one not in seen and one not in queue
        ]
    assert set(PAGES) - seen == {ROOT / "examples/summarise.md"}, "only the example of a prompt is no page"
