"""`-o`, as somebody slips: what cost money or work is still there afterwards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.processes import Shop, SimulatorProcess

RUN = ("run", "docs", "-p", "p.md")


@pytest.fixture(autouse=True)
def documents(shop: Shop) -> Path:
    """Two documents and two prompts."""
    docs = shop.folder / "docs"
    docs.mkdir()
    for name in ("a", "b"):
        (docs / f"{name}.txt").write_text(f"Document {name}.")
    (shop.folder / "p.md").write_text("Sum up: {{ text }}")
    (shop.folder / "q.md").write_text("Translate: {{ text }}")
    return docs


def names(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_run_writes_over_nothing_that_it_reads_and_queues_nothing(shop: Shop, documents: Path) -> None:
    (shop.folder / ".env").write_text("# mine\n")
    (shop.folder / "hard.jsonl").hardlink_to(documents / "a.txt")
    (shop.folder / "soft.jsonl").symlink_to("p.md")
    (shop.folder / "notes").write_text("mine")
    kept = {path: path.read_bytes() for path in shop.folder.rglob("*") if path.is_file()}
    for name in ("p.md", "docs/a.txt", "hard.jsonl", "soft.jsonl", ".env", "docs/../p.md"):
        for force in ((), ("--force",)):
            done = shop.antrean(*RUN, "-o", name, *force)
            assert done.code == 2, name
            assert "never overwritten: name another file with -o" in done.err, done.err
    single = shop.antrean("run", "docs/a.txt", "-p", "p.md", "-o", "docs/a.txt", "--force")
    assert (single.code, "is the document" in single.err) == (2, True)
    done = shop.antrean(*RUN, "-o", "notes")
    assert (done.code, "notes is not a file of results" in done.err) == (2, True)
    assert {path: path.read_bytes() for path in kept} == kept
    assert not (shop.folder / ".antrean" / "antrean.db").exists(), "nothing was queued"

    assert shop.antrean(*RUN, "-o", "notes", "--force").code == 0
    assert names(shop.folder / "notes") == ["a.txt", "b.txt"]


def test_results_never_take_the_name_of_a_file_that_antrean_would_read(shop: Shop, documents: Path) -> None:
    """Where there is no `.env`, a run that makes one would be the last that starts: its lines are no settings."""
    for name in (".env", "antrean.toml", "docs/../.env", ".antrean/antrean.db", ".antrean/antrean.db-wal"):
        for command in (RUN, ("results", "--lone")):
            done = shop.antrean(*command, "-o", name, "--force")
            assert done.code == 2, (name, command)
            # Another command made the ledger before.
            why = (
                "which (results never take|is never overwritten)"
                if "antrean/" in name
                else "which results never take"
            )
            assert re.search(f"{why}: name another file with -o", done.err), done.err
            assert not list(shop.folder.glob("antrean.toml*")) + list(shop.folder.glob(".env*"))
    (shop.folder / "link.jsonl").symlink_to(".env")
    assert shop.antrean(*RUN, "-o", "link.jsonl").code == 2
    assert not list(shop.folder.glob("*.part"))


def test_the_default_file_of_another_prompt_stays_and_is_said_to_be_its(
    shop: Shop, simulator: SimulatorProcess
) -> None:
    first = shop.antrean(*RUN, "--json").json["batch_id"]
    before = (shop.folder / "results.jsonl").read_bytes()
    other = ("run", "docs", "-p", "q.md")
    refused = shop.antrean(*other)
    assert refused.code == 2
    assert (
        f"results.jsonl holds the results of {first} (docs × p.md): name another file with -o" in refused.err
    )
    assert simulator.stats()["calls"] == 2, "nothing was asked for"
    assert [one["batch_id"] for one in shop.antrean("batches", "--json").json["batches"]] == [first]
    assert (shop.folder / "results.jsonl").read_bytes() == before

    assert shop.antrean(*other, "-o", "q.jsonl").code == 0
    named = shop.antrean(*other, "-o", "results.jsonl")
    assert (named.code, f"`antrean results {first}` writes them again" in named.err) == (0, True)
    assert shop.antrean(*RUN).code == 2, "it is the second's by now"
    assert shop.antrean(*RUN, "--force").code == 0
    assert (shop.folder / "results.jsonl").read_bytes() == before
    simulated = shop.antrean(*RUN, "--simulate")
    assert (simulated.code, "that this ledger does not have" in simulated.err) == (2, True)


def test_results_write_over_neither_the_requests_nor_what_was_pruned(shop: Shop) -> None:
    body = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": "Say."}]}
    line = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": body}
    requests = shop.folder / "requests.jsonl"
    requests.write_text(json.dumps(line) + "\n")
    submitted = shop.antrean("submit", "requests.jsonl", "--json").json["batch_id"]
    refused = shop.antrean("results", submitted, "-o", "requests.jsonl", "--force")
    assert (refused.code, "is an input of this batch" in refused.err) == (2, True)
    assert json.loads(requests.read_text()) == line

    batch = shop.antrean(*RUN, "-o", "out.jsonl", "--json").json["batch_id"]
    (shop.folder / "p.md").rename(shop.folder / "prompt.md")
    (shop.folder / "p.md").write_text("Another.")
    for name in ("p.md", "docs/b.txt", ".antrean/antrean.db"):
        done = shop.antrean("results", batch, "-o", name, "--force")
        assert done.code == 2, done.err
    before = (shop.folder / "out.jsonl").read_bytes()
    assert shop.antrean("results", batch, "-o", "out.jsonl").code == 0
    assert shop.antrean("prune", "--all", "--yes").code == 0
    again = shop.antrean("run", "docs", "-p", "prompt.md", "-o", "out.jsonl")
    assert (again.code, "holds 2 results that this ledger does not have" in again.err) == (2, True)
    assert (shop.folder / "out.jsonl").read_bytes() == before
