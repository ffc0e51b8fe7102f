"""What is antrean's own, or the run's, is no document: it would be sent, and an earlier output anew each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import InputError
from worker.settings import load_settings
from worker.sources.documents import find_documents
from worker.sources.own_files import OwnFiles

LINE = b'{"id":"batch_req_'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of documents, which is the current one, with a document in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some words")
    return tmp_path


def own_files(**settings: object) -> OwnFiles:
    told = load_settings(_env_file=None, **settings)
    return OwnFiles.of_run(told, prompt=Path("p.md"), output=Path("out.json"), output_start=LINE)


def look(own: OwnFiles) -> tuple[list[str], dict[str, str]]:
    found = find_documents(Path(), own=own)
    assert {one.reason.name for one in found.left_out} <= {"OWN"}
    return [one.relative for one in found.documents], {one.name: one.details for one in found.left_out}


def test_the_prompt_the_output_and_earlier_outputs_are_no_documents(folder: Path) -> None:
    (folder / "p.md").write_text("{{ text }}")
    (folder / "out.json").write_bytes(LINE + b'1"}\n')
    (folder / "earlier.json").write_bytes(LINE + b'1"}\n')
    (folder / "sub").mkdir()
    (folder / "sub/earlier.txt").write_bytes(LINE + b'1"}\n')
    (folder / "like.json").write_bytes(b"\n" + LINE)
    assert look(own_files()) == (
        ["a.txt", "like.json"],
        {
            "earlier.json": "earlier results",
            "out.json": "the output",
            "p.md": "the prompt",
            "sub/earlier.txt": "earlier results",
        },
    )


def test_secrets_and_settings_are_never_sent(folder: Path) -> None:
    for name in ("key.txt", "pw.txt", ".env", "antrean.toml"):
        (folder / name).write_text("")
    (folder / "pw.txt").write_text("secret")
    (folder / "link.txt").symlink_to("key.txt")
    own = own_files(api_key_file="key.txt", flower_password_file="pw.txt")
    assert look(own) == (
        ["a.txt"],
        {
            ".env": "settings",
            "antrean.toml": "settings",
            "key.txt": "the file of a key or password",
            "link.txt": "the file of a key or password",
            "pw.txt": "the file of a key or password",
        },
    )
    with pytest.raises(InputError, match=r"key\.txt is the file of a key or password"):
        find_documents(folder / "key.txt", own=own)


def test_homes_and_ledgers_are_not_looked_into(folder: Path) -> None:
    for home in (".antrean", "state", "other"):
        (folder / home / "logs").mkdir(parents=True)
        (folder / home / "logs/worker.log").write_text("lines")
    (folder / "other/antrean.db").write_bytes(b"")
    (folder / "ledger.txt").write_bytes(b"SQLite format 3\0\xff")
    (folder / "logs").symlink_to("state/logs")
    (folder / "worker.log").symlink_to("other/logs/worker.log")
    own = own_files(home="state", database_url="sqlite:///ledger.txt")
    found = find_documents(folder, own=own)
    assert [one.relative for one in found.documents] == ["a.txt"]
    assert {one.name: one.details or one.reason for one in found.left_out} == {
        ".antrean/": "hidden",
        "ledger.txt": "the ledger",
        "logs/": "the home of antrean",
        "other/": "a home of antrean",
        "state/": "the home of antrean",
        "worker.log": "a home of antrean",
    }
    with pytest.raises(InputError, match="state is the home of antrean: name a document"):
        find_documents(Path("state"), own=own)


def test_the_file_that_the_command_itself_prints_to_is_no_document(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "run.log").open("w") as log:
        log.write("2 files left out\n")
        log.flush()
        monkeypatch.setattr("sys.stderr", log)
        own = own_files()
    assert look(own) == (["a.txt"], {"run.log": "where standard error goes"})


def test_results_that_are_named_themselves_are_meant(folder: Path) -> None:
    (folder / "earlier.json").write_bytes(LINE + b'1"}\n')
    found = find_documents(folder / "earlier.json", own=own_files())
    assert [one.relative for one in found.documents] == ["earlier.json"]
