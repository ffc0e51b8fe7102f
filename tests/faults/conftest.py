"""The faults: each in an arena of its own, on both databases; hundreds of jobs with --storm, tens without."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict

import pytest

from tests.support.arena import Arena, Figures, close_arena, make_arena
from tests.support.folders import make_short_folder
from tests.support.processes import SimulatorProcess

_PROPERTY = "figures"  # of a test's report, which also travels from one process of xdist's to another


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --storm each scenario is tried once: on PostgreSQL where it is about that, or is
    marked for both."""
    for item in items:
        # Longer than any wait of `conclude`, so that its row is printed; a timeout takes the whole process along.
        if "faults" in item.path.parts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))
    if config.getoption("--storm"):
        return
    databases: dict[str, set[str]] = defaultdict(set)
    for item in items:
        databases[_test_of(item)].add(_database_of(item))
    left_out = {
        item
        for item in items
        if _database_of(item) == "postgresql"
        and "sqlite" in databases[_test_of(item)]
        and not item.get_closest_marker("both_databases")
    }
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def _test_of(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _database_of(item: pytest.Item) -> str:
    """The arena's database, or nothing where the test has no arena."""
    callspec = getattr(item, "callspec", None)
    return "" if callspec is None else str(callspec.params.get("arena", ""))


@pytest.fixture
def is_full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--storm"))


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[Figures], None]:
    """Adds a row to the table at the end."""
    return lambda figures: record_property(_PROPERTY, asdict(figures))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def arena(
    request: pytest.FixtureRequest, is_full: bool, report: Callable[[Figures], None]
) -> Iterator[Arena]:
    """`@pytest.mark.simulator("--latency", "2")` sets the endpoint's options; `@pytest.mark.settings(…)` the workers'."""
    options = request.node.get_closest_marker("simulator")
    settings = request.node.get_closest_marker("settings")
    folder = make_short_folder()  # short: sockets go below it
    folder.chmod(0o711)  # PostgreSQL runs as another user where we are root
    simulator = SimulatorProcess(*(options.args if options else ("--latency", "0.2")))
    arena = make_arena(
        folder,
        request.param,
        simulator,
        is_full=is_full,
        report=report,
        # At other levels what is many is a number, and these tests count lines.
        **({"log_level": "debug"} | (settings.kwargs if settings else {})),
    )
    try:
        yield arena
    finally:
        close_arena(arena)
        simulator.close()
        shutil.rmtree(folder, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ended = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, [])]
    figures = [
        Figures(**value)
        for one in sorted(ended, key=lambda one: str(one.nodeid))
        if one.when == "call"
        for name, value in one.user_properties
        if name == _PROPERTY
    ]
    if not figures:
        return
    head = ("fault", "database", "jobs", "ended", "lost", "duplicates", "extra calls", "recovered in, s")
    rows = [
        (
            one.fault,
            one.database,
            str(one.jobs),
            str(one.ended),
            str(one.lost),
            str(one.duplicates),
            str(one.extra_calls),
            "" if one.recover_s is None else f"{one.recover_s:.1f}",
        )
        for one in figures
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    terminalreporter.section("faults")
    for row in (head, tuple("-" * width for width in widths), *rows):
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        terminalreporter.write_line("| " + " | ".join(cells) + " |")
