"""The order in which several workers of pytest's take the tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.selection import find_more_cases, order_for_workers


@dataclass(frozen=True)
class One:
    path: Path
    name: int
    is_slow: bool = False

    def get_closest_marker(self, name: str) -> object:
        return name if name == "slow" and self.is_slow else None


def some_tests(file: str, count: int, slow: int) -> list[One]:
    return [One(Path(file), number, is_slow=number >= count - slow) for number in range(count)]


def test_each_worker_begins_with_what_is_slow_and_ends_with_what_is_short() -> None:
    acceptance = [
        *some_tests("tests/acceptance/a.py", 5, slow=1),
        *some_tests("tests/acceptance/b.py", 3, slow=2),
        *some_tests("tests/faults/c.py", 4, slow=0),
    ]
    items = [
        *acceptance,
        *some_tests("tests/contract/d.py", 20, slow=0),
        *some_tests("tests/unit/e.py", 28, slow=0),
    ]
    ordered = order_for_workers(items, 3)
    assert sorted(map(items.index, ordered)) == list(range(60))
    for part in (ordered[:20], ordered[20:40], ordered[40:]):
        kinds = [0 if one.is_slow else 1 if one in acceptance else 2 for one in part]
        assert kinds == sorted(kinds)
        assert {0, 1, 2} == set(kinds)


def test_without_short_tests_none_is_lost() -> None:
    items = [*some_tests("tests/faults/a.py", 7, slow=0), *some_tests("tests/faults/b.py", 1, slow=0)]
    assert sorted(map(items.index, order_for_workers(items, 3))) == list(range(8))


def test_one_worker_takes_them_as_they_come() -> None:
    items = [*some_tests("tests/unit/e.py", 2, slow=0), *some_tests("tests/acceptance/a.py", 2, slow=1)]
    assert order_for_workers(items, 1) == items


@dataclass(frozen=True)
class Case:
    nodeid: str
    count: int | None = None

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return None if self.count is None else pytest.Mark(name, (self.count,), {}, _ispytest=True)


def test_the_first_sets_of_parameters_of_a_test_run_by_default() -> None:
    marked = [Case(f"a.py::test_it[{n}]", 2) for n in range(4)]
    others = [Case(f"a.py::test_another[{n}]") for n in range(4)]
    of_another_file = [Case(f"b.py::test_it[{n}]", 1) for n in range(2)]
    assert find_more_cases([*marked, *others, *of_another_file]) == [*marked[2:], of_another_file[1]]
