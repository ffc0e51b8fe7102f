"""Documents: which files count, in which order, and what is said of those that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.errors import InputError
from worker.files.names import FileName
from worker.sources import documents
from worker.sources.documents import Document, UnreadableDocuments, find_documents, source_key
from worker.sources.left_out import Reason


def write(folder: Path, *names: str, content: bytes = b"some words\n") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def names(path: Path) -> list[str]:
    return [document.relative for document in find_documents(path).documents]


def left_out(path: Path) -> list[tuple[str, str]]:
    return [(one.name, str(one.reason)) for one in find_documents(path).left_out]


def complaints(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        find_documents(path)
    return caught.value.problems or [str(caught.value)]


def test_a_folder_is_walked_and_sorted_by_relative_path(tmp_path: Path) -> None:
    write(tmp_path, "b.txt", "a/z.md", "a/b/c.HTML", "a.csv")
    assert names(tmp_path) == ["a.csv", "a/b/c.HTML", "a/z.md", "b.txt"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", ".hidden.txt", ".git/b.txt")
    assert left_out(tmp_path) == [(".git/", "hidden"), (".hidden.txt", "hidden")]
    assert names(tmp_path) == ["a.txt"]


def test_files_of_other_kinds_are_skipped_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.png", "Makefile", "c.jsonl")
    found = find_documents(tmp_path)
    assert (len(found.documents), found.count_left_out(Reason.OTHER_KIND)) == (1, 3)


def test_empty_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    write(tmp_path, "b.txt", content=b"")
    write(tmp_path, "c.txt", content=b"\xef\xbb\xbf \n\t")
    found = find_documents(tmp_path)
    assert (len(found.documents), found.count_left_out(Reason.EMPTY)) == (1, 2)


def test_a_file_that_is_named_itself_may_have_any_suffix(tmp_path: Path) -> None:
    write(tmp_path, "NOTES", "other.txt")
    found = find_documents(tmp_path / "NOTES")
    assert [document.relative for document in found.documents] == ["NOTES"]
    assert found.documents[0].read() == "some words\n"


def test_a_document_knows_its_names(tmp_path: Path) -> None:
    write(tmp_path, "a/b.c.txt")
    (document,) = find_documents(tmp_path).documents
    assert (document.name, document.stem) == ("b.c.txt", "b.c")
    assert document.path == tmp_path / "a/b.c.txt"


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", content=b"\xef\xbb\xbfHalo")
    assert find_documents(tmp_path).documents[0].read() == "Halo"


def test_every_document_that_cannot_be_used_is_named_at_once(tmp_path: Path) -> None:
    write(tmp_path, "ok.txt")
    write(tmp_path, "a/latin.txt", content=b"caf\xe9")
    write(tmp_path, "b.txt", content=b"\xef\xbb\xbf\xff")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert complaints(tmp_path) == [
        "a/latin.txt: is not UTF-8 text (byte 3); save it as UTF-8",
        "b.txt: is not UTF-8 text (byte 3); save it as UTF-8",
        "gone.txt: cannot be read (No such file or directory)",
    ]


def test_a_document_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LARGEST_BYTES", 2**20)
    write(tmp_path, "a.txt", content=b"x" * 2**20)
    write(tmp_path, "b.txt", content=b"x" * (2**20 + 1))
    assert complaints(tmp_path) == ["b.txt: is larger than 1 MiB; split it"]


def test_a_name_that_is_not_utf8_is_refused_in_printable_words(tmp_path: Path) -> None:
    try:
        write(tmp_path, os.fsdecode(b"caf\xe9.txt"))
    except OSError:
        pytest.skip("this file system takes no such name")
    (problem,) = complaints(tmp_path)
    assert problem == "caf\\udce9.txt: its name is not UTF-8; rename it"


def test_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    write(tmp_path, "a/b/c.txt")
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    (tmp_path / "self.txt").symlink_to(tmp_path / "a" / "b" / "c.txt")
    assert names(tmp_path) == ["a/b/c.txt", "self.txt"]


def test_a_link_leads_to_what_is_in_the_folder_and_not_out_of_it(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/x.txt", "in/b/a.txt", "in/.kept/c.txt", "inside/x.txt")
    for name, target in {
        "out": "elsewhere",
        "out.txt": "elsewhere/x.txt",
        "beside.txt": "inside/x.txt",  # whose path begins like the folder's
        "gone.txt": "nowhere.txt",
        "c.txt": "in/.kept/c.txt",
        "a": "in/b",
        "kept": "in/.kept",
    }.items():
        (tmp_path / "in" / name).symlink_to(tmp_path / target)
    (tmp_path / "in/relative.txt").symlink_to("../elsewhere/x.txt")
    (tmp_path / "way").symlink_to("in")
    for way in ("in", "way"):
        assert names(tmp_path / way) == ["b/a.txt", "c.txt", "kept/c.txt"]
        assert left_out(tmp_path / way) == [
            (".kept/", "hidden"),
            ("a/", "a link to a folder whose documents are there already"),
            *((name, "a link that leads out of the folder") for name in ("beside.txt", "gone.txt")),
            *((name, "a link that leads out of the folder") for name in ("out", "out.txt", "relative.txt")),
        ]


def test_a_file_that_is_named_itself_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/x.txt")
    (tmp_path / "link.txt").symlink_to("elsewhere/x.txt")
    assert names(tmp_path / "link.txt") == ["link.txt"]


def test_a_pipe_is_neither_waited_for_nor_sent(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "pipe.txt")
    assert find_documents(tmp_path).count_left_out(Reason.OTHER_KIND) == 2
    assert complaints(tmp_path / "pipe.txt") == [f"{tmp_path / 'pipe.txt'} is neither a file nor a folder"]


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0"])
def test_standard_input_has_no_name_to_be_known_by(name: str) -> None:
    """Behind it may be a temporary file, and the job would be called after that."""
    (problem,) = complaints(Path(name))
    assert problem.startswith(f"{name} has no name that its document could be known by: save it to a file")


def test_unreadable_documents_are_passed_over_where_that_is_wanted(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    write(tmp_path, "latin.txt", content=b"caf\xe9")
    with pytest.raises(UnreadableDocuments):
        find_documents(tmp_path)
    found = find_documents(tmp_path, skips_unreadable=True)
    assert [document.relative for document in found.documents] == ["a.txt"]
    (one,) = found.left_out
    assert (one.name, one.reason) == ("latin.txt", Reason.UNREADABLE)
    assert one.details == "is not UTF-8 text (byte 3); save it as UTF-8"
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UnreadableDocuments):
        find_documents(tmp_path, skips_unreadable=True)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert complaints(tmp_path / "no") == [f"No such file or folder: {tmp_path / 'no'}"]


def test_a_folder_without_documents_says_what_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (problem,) = complaints(tmp_path)
    assert problem.startswith(f"{tmp_path} holds no documents (looked for *.txt, ")
    assert problem.endswith("; files of other kinds: 1")


def test_a_folder_of_empty_documents_says_so(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", content=b" ")
    assert complaints(tmp_path) == [f"{tmp_path} holds no documents: 1 found, and all are empty"]


def test_a_document_that_changed_after_its_check_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    (document,) = find_documents(tmp_path).documents
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InputError, match=r"a\.txt: cannot be read"):
        document.read()


def test_a_source_key_is_relative_inside_its_base_and_absolute_outside(tmp_path: Path) -> None:
    write(tmp_path, "in/a/b.txt")
    document = Document(tmp_path / "in", FileName("a/b.txt"))
    assert source_key(document, tmp_path) == "in/a/b.txt"
    assert source_key(document, tmp_path / "other") == (tmp_path.resolve() / "in/a/b.txt").as_posix()


def test_a_source_key_is_the_same_by_every_way_to_the_file(tmp_path: Path) -> None:
    write(tmp_path, "in/a.txt")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert source_key(Document(tmp_path / "link", FileName("a.txt")), tmp_path / "in/..") == "in/a.txt"
