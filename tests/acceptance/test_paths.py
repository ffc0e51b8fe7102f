"""Paths are data: whatever stands in the name of a home or a ledger, it is that file and no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.processes import Shop, processes_under

pytestmark = pytest.mark.real_interpreter

_NAMES = ["a%41 b?c=d#e'\"\\\n;é[/x]*", os.fsdecode(b"file:caf\xe9?mode=ro"), ":memory:"]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", _NAMES, ids=["marks", "bytes", "memory"])
def test_a_home_of_any_name_is_that_folder_and_no_other(shop: Shop, name: str) -> None:
    home = shop.folder / name / "home"
    shop.settings["home"] = f"{name}/home"
    (shop.folder / "documents").mkdir()
    (shop.folder / "documents" / "a.txt").write_text("some words")
    (shop.folder / "prompt.md").write_text("Sum up: {{ text }}")
    before = set(shop.folder.iterdir())

    done = shop.antrean("run", "documents", "-p", "prompt.md", "--json", "-o", "-")
    assert done.code == 0, done.err
    again = shop.antrean("run", "documents", "-p", "prompt.md", "-o", "results.jsonl", "--json")
    assert (again.code, again.json["already_done"]) == (0, 1), again.err

    top = Path(os.path.relpath(home, shop.folder)).parts[0]
    assert set(shop.folder.iterdir()) == before | {shop.folder / top, shop.folder / "results.jsonl"}
    made = {path.name for path in home.iterdir()}
    assert made >= {"antrean.db", "logs", "valkey"}
    assert {path.name for path in (home / "logs").iterdir()} >= {"keeper.log", "valkey.log", "worker.log"}
    assert any((home / "valkey").iterdir())
    assert processes_under(shop.folder) == []


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", _NAMES, ids=["marks", "bytes", "memory"])
def test_a_ledger_of_any_name_is_that_file_and_no_other(shop: Shop, name: str) -> None:
    shop.settings["database_url"] = f"sqlite:///ledgers/{name}.db"
    (shop.folder / "requests.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hi"}], "model": "m"}\n'
    )
    assert shop.antrean("migrate").code == 0
    assert shop.antrean("submit", "requests.jsonl", "--no-check", "--json").json["new"] == 1
    # Handed on in the environment of a worker, and taken from there again.
    assert shop.antrean("check", "--json").json["ok"]
    folder = (shop.folder / "ledgers" / f"{name}.db").parent
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in folder.iterdir()} == {
        Path(f"{name}.db").name
    }
