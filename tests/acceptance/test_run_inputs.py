"""What `antrean run` sends, and what it does not: links, its own files, what cannot be read, pipes, requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import Finished, Shop, SimulatorProcess, environment

LINES: list[dict[str, object]] = [
    {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "one"}]},
    },
    {"messages": [{"role": "user", "content": "two"}]},
]
REQUESTS = "".join(json.dumps(line) + "\n" for line in LINES)


@pytest.fixture
def docs(shop: Shop) -> Path:
    """A folder with a document in it, and the prompt beside the folder."""
    (shop.folder / "docs").mkdir()
    (shop.folder / "docs" / "a.txt").write_text("some words")
    (shop.folder / "p.md").write_text("Sum up: {{ text }}")
    return shop.folder / "docs"


def in_shell(shop: Shop, command: str) -> Finished:
    """What `command` does in a shell in which `antrean` is the command."""
    antrean = f'antrean() {{ "{sys.executable}" -P -m worker.cli "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-c", antrean + command],
        cwd=shop.folder,
        env=environment(shop.settings),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


def names(output: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in output.read_text().splitlines()]


def test_two_names_of_one_document_are_two_lines_and_links_do_not_lead_out(
    shop: Shop, docs: Path, simulator: SimulatorProcess
) -> None:
    """Case 17, T27."""
    (docs / "b.txt").symlink_to("a.txt")
    (shop.folder / "secret.txt").write_text("nobody's business")
    (docs / "out.txt").symlink_to("../secret.txt")
    (docs / "up").symlink_to(docs)
    for done_before in (0, 2):
        done = shop.antrean("run", "docs", "-p", "p.md", "--json")
        assert (done.code, done.json["succeeded"], done.json["already_done"]) == (0, 2, done_before), done.err
        assert "1 left out, a link that leads out of the folder: out.txt\n" in done.err
        assert "1 left out, a link to a folder whose documents are there already: up/\n" in done.err
        assert names(shop.folder / "results.jsonl") == ["a.txt", "b.txt"]
    assert simulator.stats()["paid"] == 1
    batch_id = done.json["batch_id"]
    assert shop.antrean("results", batch_id, "-o", "again.jsonl").code == 0
    assert names(shop.folder / "again.jsonl") == ["a.txt", "b.txt"]


def read_remarks(log: Path) -> list[str]:
    """What was said, but for where the requests go."""
    return [line for line in log.read_text().splitlines() if not line.startswith("requests go to ")]


@pytest.mark.full
def test_a_run_in_the_folder_itself_sends_the_document_and_nothing_of_its_own(
    shop: Shop, docs: Path, simulator: SimulatorProcess
) -> None:
    """Case 18."""
    shop.folder = docs
    shop.settings |= {"home": "state", "api_key_file": "key.txt"}
    del shop.settings["api_key"]
    (docs / "key.txt").write_text("k")
    (docs / "prompt.md").write_text("Sum up: {{ text }}")
    for output in ("results.json", "results.json", "other.json"):
        done = in_shell(shop, f"antrean run . -p prompt.md -o {output} --json 2>> run.log")
        assert (done.code, done.json["jobs"]) == (0, 1)
        assert names(docs / output) == ["a.txt"]
    assert simulator.stats()["paid"] == 1
    told = read_remarks(docs / "run.log")
    begin = "5 left out, of this run or of antrean itself: key.txt (the file of a key or password), prompt.md"
    assert told[-2:] == [
        f"{begin} (the prompt), results.json (earlier results) and 2 more",
        "--verbose names all of them",
    ]
    assert in_shell(shop, "antrean run . -p prompt.md -v -o - >> out.txt 2>> run.log").code == 0
    assert read_remarks(docs / "run.log")[-3] == (
        "7 left out, of this run or of antrean itself: key.txt (the file of a key or password), other.json (earlier "
        "results), out.txt (where standard output goes), prompt.md (the prompt), results.json (earlier results), run.log "
        "(where standard error goes), state/ (the home of antrean)"
    )
    assert simulator.stats()["paid"] == 1
    (batch,) = shop.antrean("batches", "--json").json["batches"]
    assert batch["label"] == "docs × prompt.md"


def test_an_edited_document_has_one_line_in_the_results_and_a_deleted_one_none(
    shop: Shop, docs: Path
) -> None:
    (docs / "b.txt").write_text("other words")
    assert shop.antrean("run", "docs", "-p", "p.md").code == 0
    (docs / "a.txt").write_text("edited words")
    (docs / "b.txt").unlink()
    (docs / "c.txt").write_text("new words")
    done = shop.antrean("run", "docs", "-p", "p.md", "--json")
    assert (done.code, done.json["jobs"]) == (0, 2)
    status = shop.antrean("status", done.json["batch_id"], "--json").json
    assert (status["total"], status["jobs"]["succeeded"]) == (2, 2)
    for output in ("results.jsonl", "again.jsonl"):
        if output == "again.jsonl":
            assert shop.antrean("results", done.json["batch_id"], "-o", output).code == 0
        assert names(shop.folder / output) == ["a.txt", "c.txt"]


def test_an_unreadable_document_is_named_and_passed_over_where_that_is_wanted(shop: Shop, docs: Path) -> None:
    (docs / "latin.txt").write_bytes(b"caf\xe9")
    refused = shop.antrean("run", "docs", "-p", "p.md")
    assert (refused.code, refused.err) == (
        2,
        "antrean: latin.txt: is not UTF-8 text (byte 3); save it as UTF-8 (--skip-unreadable goes on without)\n",
    )
    assert not (shop.folder / ".antrean").exists()
    done = shop.antrean("run", "docs", "-p", "p.md", "--skip-unreadable", "--json")
    assert (done.code, done.json["jobs"]) == (0, 1)
    assert "1 left out, unreadable: latin.txt (is not UTF-8 text (byte 3); save it as UTF-8)\n" in done.err


def test_requests_run_without_a_prompt_and_are_the_batch_that_submit_makes(
    shop: Shop, simulator: SimulatorProcess
) -> None:
    (shop.folder / "r.jsonl").write_text(REQUESTS)
    submitted = shop.antrean("submit", "r.jsonl", "--json").json
    done = shop.antrean("run", "r.jsonl", "-o", "out.jsonl", "--json")
    assert (done.code, done.json["succeeded"], done.json["batch_id"]) == (0, 2, submitted["batch_id"]), (
        done.err
    )
    assert names(shop.folder / "out.jsonl") == ["a", f"{submitted['batch_id']}:2"]
    again = shop.antrean("submit", "r.jsonl", "--json").json
    assert (again["batch_id"], again["new"]) == (submitted["batch_id"], 0)
    assert simulator.stats()["paid"] == 2


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "command",
    ["cat r.jsonl | antrean run -", "antrean run <(cat r.jsonl)", "antrean run /dev/stdin < r.jsonl"],
)
def test_requests_from_a_pipe_are_named_by_no_temporary_path(shop: Shop, command: str) -> None:
    (shop.folder / "r.jsonl").write_text(REQUESTS)
    done = in_shell(shop, f"TMPDIR=$PWD {command} --json -o out.jsonl")
    assert done.code == 0, done.err
    batch_id = done.json["batch_id"]
    assert names(shop.folder / "out.jsonl") == ["a", f"{batch_id}:2"]
    job = json.loads((shop.folder / "out.jsonl").read_text().splitlines()[0])["id"].removeprefix("batch_req_")
    job_id = "-".join((job[:8], job[8:12], job[12:16], job[16:20], job[20:]))
    told = done.out + done.err + (shop.folder / "out.jsonl").read_text()
    for show in (("status", batch_id), ("batches",), ("show", job_id), ("results", batch_id)):
        shown = shop.antrean(*show)
        assert shown.code == 0, shown.err
        told += shown.out + shown.err
    told = told.replace(str(shop.folder), "HERE")  # the ledger's own place
    assert not any(word in told for word in ("/tmp", str(shop.folder / "tmp"), "tmp", "/dev/fd")), told
    assert "standard input" in told or "a pipe" in told


@pytest.mark.default_cases(5)
@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("antrean run docs", "a .jsonl file or a pipe; documents need one: --prompt FILE"),
        ("antrean run no.jsonl", "No such file: no.jsonl"),
        (f"antrean run {'x' * 300}", f"{'x' * 300}: cannot be read (File name too long)"),
        ("echo {} | antrean run - --no-check", "line 1: needs messages"),
        ("printf 'x\\377' | antrean run docs -p -", "standard input: is not UTF-8 text"),
        ("antrean run docs/a.txt", "docs/a.txt: without a prompt, requests are taken, one a line,"),
        (f"antrean submit {'x' * 300} --no-check", f"{'x' * 300}: cannot be read (File name too long)"),
        ("antrean run - -p p.md < docs/a.txt", "- has no name that its document could be known by: save it"),
        ("antrean run docs -p docs/a.txt", "holds no documents"),
        ("antrean run p.md -p p.md", "p.md is the prompt: name a document"),
    ],
)
def test_input_that_is_none_is_a_sentence(shop: Shop, docs: Path, command: str, sentence: str) -> None:
    (docs / "a.txt").write_text("{{ text }}")
    done = in_shell(shop, command)
    assert done.code == 2, done.err
    assert sentence in done.err
    assert not (shop.folder / "results.jsonl").exists()


def test_a_document_of_any_name_is_sent_and_known_by_it(shop: Shop, docs: Path) -> None:
    odd = ["100%41.txt", "a\tb?.txt", "[bold].txt", "é #1;'\".txt", "file:x.txt", "-n.txt"]
    for name in odd:
        (docs / name).write_text(f"words of {name}")
    done = shop.antrean("run", "docs", "-p", "p.md", "--json")
    assert (done.code, done.json["succeeded"]) == (0, 7), done.err
    assert names(shop.folder / "results.jsonl") == sorted([*odd, "a.txt"])
