"""Which tests run without `--full`, and in which order several workers of pytest's take them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

_OF_PROCESSES = {"acceptance", "faults", "integration"}  # folders whose tests wait for processes


class Placed(Protocol):
    """A test, as far as its place in the order goes."""

    path: Path

    def get_closest_marker(self, name: str) -> object: ...


T = TypeVar("T", bound=Placed)


class Case(Protocol):
    """A test with one set of its parameters."""

    @property
    def nodeid(self) -> str: ...

    def get_closest_marker(self, name: str) -> pytest.Mark | None: ...


C = TypeVar("C", bound=Case)


def find_twins(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Tests of real processes on PostgreSQL that run on SQLite as well, and are not marked `both_databases`.

    What their processes ask of a database, the contract suite asks of both.
    """
    databases: dict[tuple[object, ...], set[str]] = defaultdict(set)
    found = []
    for item in items:
        params = dict(getattr(getattr(item, "callspec", None), "params", {}))
        if "plant" not in params:
            continue
        database = str(params.pop("plant"))
        key = (item.nodeid.partition("[")[0], *sorted((name, repr(value)) for name, value in params.items()))
        databases[key].add(database)
        if database == "postgresql" and item.get_closest_marker("both_databases") is None:
            found.append((key, item))
    return [item for key, item in found if "sqlite" in databases[key]]


def find_more_cases(items: Sequence[C]) -> list[C]:
    """Of each test marked `default_cases(n)`, those after its first n sets of parameters."""
    seen: dict[str, int] = defaultdict(int)
    found = []
    for item in items:
        marker = item.get_closest_marker("default_cases")
        if marker is None:
            continue
        name = item.nodeid.partition("[")[0]
        seen[name] += 1
        if seen[name] > marker.args[0]:
            found.append(item)
    return found


def order_for_workers(items: Sequence[T], count: int) -> list[T]:
    """The tests in an order whose `count` equal parts begin with those of processes, the slowest first.

    xdist's `worksteal` gives each worker such a part, and moves half of what is left of the longest to whoever is done.
    So short tests are what is left at the end. Tests of a file stay together, but for those marked `slow`. For one
    worker nothing changes.
    """
    if count < 2:
        return list(items)
    files: dict[Path, list[T]] = defaultdict(list)
    short = []
    for item in items:
        if _OF_PROCESSES.intersection(item.path.parts):
            files[item.path].append(item)
        else:
            short.append(item)
    parts: list[list[T]] = [[] for _ in range(count)]
    slow = [item for one in files.values() for item in one if item.get_closest_marker("slow") is not None]
    for place, item in enumerate(slow):
        parts[place % count].append(item)
    for file in sorted(files.values(), key=len, reverse=True):
        min(parts, key=len).extend(item for item in file if item.get_closest_marker("slow") is None)
    ordered: list[T] = []
    for place, part in enumerate(parts):
        size = (len(items) - len(ordered)) // (count - place)
        more = max(0, size - len(part))
        ordered += [*part, *short[:more]]
        short = short[more:]
    return ordered + short
