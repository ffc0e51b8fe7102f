"""Jobs change state in one place: read from the source of `worker`, so that no new writer slips in beside it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.job import FINAL_STATES, TARGETS, Move

WORKER = Path(__file__).resolve().parents[2] / "worker"
TRANSITIONS = WORKER / "storage" / "transitions.py"
# Moves that are a part of a hot statement, and end nothing.
ELSEWHERE = {"storage/claims.py": Move.CLAIM, "storage/due.py": Move.RELAY}
INSERTS = frozenset({"insert", "insert_columns", "insert_or_ignore", "upsert", "build_upsert"})
RAW = re.compile(r"\b(update|insert\s+(or\s+\w+\s+)?into)\s+jobs\b", re.IGNORECASE)


def find_writes(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of what may write the state of a job."""
    tree = ast.parse(source)
    read = {id(node.slice) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="values"), keywords=keywords):
                for keyword in keywords:
                    if keyword.arg == "state":
                        yield node.lineno, f"state={ast.unparse(keyword.value)}"
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in INSERTS:
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
                if any(ast.unparse(value).rpartition(".")[2] == "jobs" for value in values):
                    yield node.lineno, ast.unparse(node)
            case ast.Constant(value=str(text)):
                # As a name of a column to write, in a dict or a list; not where a value is read by it.
                if (text in ("state", "new_state") and id(node) not in read) or RAW.search(text):
                    yield node.lineno, repr(text)
            case ast.Subscript(slice=ast.Constant(value="state" | "new_state"), ctx=ast.Store()):
                yield node.lineno, ast.unparse(node)
            case _:
                pass


def test_no_other_module_writes_the_state_of_a_job() -> None:
    found: dict[str, list[str]] = {}
    for path in sorted((WORKER / "storage").glob("*.py")):
        if path != TRANSITIONS:
            writes = [f"{line}: {what}" for line, what in find_writes(path.read_text())]
            if writes:
                found[str(path.relative_to(WORKER))] = [write.partition(": ")[2] for write in writes]
    assert found == {name: [f"state=TARGETS[Move.{move.name}].value"] for name, move in ELSEWHERE.items()}


def test_what_moves_jobs_elsewhere_ends_none() -> None:
    assert not {TARGETS[move] for move in ELSEWHERE.values()} & FINAL_STATES


def test_the_one_place_is_seen_by_this_test() -> None:
    assert len(list(find_writes(TRANSITIONS.read_text()))) >= 3


def test_no_statement_is_written_as_text_outside_the_storage() -> None:
    for path in WORKER.rglob("*.py"):
        if "storage" not in path.parts:
            assert not RAW.search(path.read_text()), path


@pytest.mark.parametrize(
    "source",
    [
        "update(jobs).where(x).values(state='failed')",
        "update(jobs).values({'state': JobState.FAILED.value})",
        "values['state'] = 'failed'",
        "update(jobs).values({jobs.c.state: 'failed', 'state': 1})",
        "connection.execute(insert(jobs), rows)",
        "connection.execute(insert_or_ignore(connection, tables.jobs), rows)",
        "insert_columns(connection, jobs, columns)",
        "partial(build_upsert, table=jobs); build_upsert(dialect, table=jobs, keys=('id',))",
        "connection.exec_driver_sql('UPDATE jobs SET x = 1')",
        "text('insert or ignore into jobs values (1)')",
        "MOVED = ('attempts', 'state')",
    ],
)
def test_such_a_writer_would_be_found(source: str) -> None:
    assert list(find_writes(source))


@pytest.mark.parametrize("source", ["row['state']", "select(jobs.c.state)", "insert(usage)", "is_in(state)"])
def test_what_only_reads_is_not_meant(source: str) -> None:
    assert not list(find_writes(source))
