"""The key's file is read again when it changes, and never at the price of a key that works."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.clock import FakeClock
from worker.attempt.key_file import KeyFile
from worker.errors import SettingsError


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("sk-one\n")
    return path


def only(keys: tuple[str, ...]) -> str:
    [key] = keys
    return key


def after_looks(file: KeyFile, clock: FakeClock, looks: int = 2) -> str:
    """The key after so many looks at the file, a second apart."""
    key = ""
    for _ in range(looks):
        clock.advance(1.0)
        key = only(file.known())
    return key


@pytest.mark.parametrize("text", ["sk-two", "sk-two\n", "  sk-two\r\n\n"])
def test_a_key_that_is_written_into_the_file_is_taken_without_a_refusal(
    path: Path, clock: FakeClock, text: str
) -> None:
    file = KeyFile(path, clock)
    path.write_text(text)
    assert after_looks(file, clock) == "sk-two"


def test_the_file_is_looked_at_once_a_second_at_most(path: Path, clock: FakeClock) -> None:
    file = KeyFile(path, clock)
    path.write_text("sk-two\n")
    for _ in range(9):
        clock.advance(0.1)
        assert file.known() == ("sk-one",)
    assert after_looks(file, clock) == "sk-two"


def test_a_key_of_the_same_length_and_time_is_a_change(path: Path, clock: FakeClock) -> None:
    before = path.stat()
    file = KeyFile(path, clock)
    path.write_text("sk-two\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert after_looks(file, clock) == "sk-two"


def test_a_link_that_is_swung_to_another_folder_is_a_change(tmp_path: Path, clock: FakeClock) -> None:
    """As Kubernetes renews a secret: the file is a link through `..data`, and that is replaced as a whole."""
    for name, key in (("v1", "sk-one"), ("v2", "sk-two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").write_text(key)
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "key").symlink_to("..data/key")
    file = KeyFile(tmp_path / "key", clock)
    assert file.known() == ("sk-one",)
    (tmp_path / "..data_tmp").symlink_to("v2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    (tmp_path / "v1" / "key").unlink()
    assert after_looks(file, clock) == "sk-two"


def test_a_key_that_is_half_written_is_not_taken(path: Path, clock: FakeClock) -> None:
    file = KeyFile(path, clock)
    with path.open("w") as writer:
        for part in ("sk-", "tw", "o"):
            writer.write(part)
            writer.flush()
            assert after_looks(file, clock, 1) == "sk-one"
    assert after_looks(file, clock, 1) == "sk-two"


@pytest.mark.parametrize("state", ["empty", "blank", "gone", "binary", "two words", "a folder"])
def test_the_last_key_stays_while_the_file_holds_none_and_that_is_said_once(
    path: Path, clock: FakeClock, state: str
) -> None:
    file = KeyFile(path, clock)
    path.unlink()
    if state == "a folder":
        path.mkdir()
    elif state != "gone":
        path.write_bytes({"empty": b"", "blank": b" \n", "binary": b"sk-\xff", "two words": b"sk one"}[state])
    with capture_logs() as logs:
        assert after_looks(file, clock, 5) == only(file.reread(0.0)) == "sk-one"
    if path.is_dir():
        path.rmdir()
    assert [one["event"] for one in logs] == ["key.kept"]
    assert "sk" not in logs[0]["why"].replace(str(path), "")
    path.write_text("sk-two")
    assert after_looks(file, clock) == "sk-two"
    path.write_text("")
    with capture_logs() as logs:
        assert after_looks(file, clock, 5) == "sk-two"
    assert len(logs) == 1, "another time is told again"


def test_a_refused_key_is_read_again_at_once(path: Path, clock: FakeClock) -> None:
    file = KeyFile(path, clock)
    path.write_text("sk-two")
    assert file.reread(0.0) == ("sk-two",)
    assert file.known() == ("sk-two",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b"\xff", "holds no text"),
        (b"s k", "printable ASCII"),
        (b"ok\ns k", r"\(key 2 of 2\) must be"),
    ],
)
def test_a_file_without_a_key_at_the_start_is_a_sentence(
    tmp_path: Path, clock: FakeClock, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(SettingsError, match=f"ANTREAN_API_KEY_FILE: .*{words}") as caught:
        KeyFile(tmp_path / "key", clock)
    assert "s k" not in str(caught.value)


def test_several_lines_are_several_keys_each_once_in_their_order(path: Path, clock: FakeClock) -> None:
    path.write_text("sk-one\n\n  sk-two\r\nsk-one\nsk-three")
    file = KeyFile(path, clock)
    assert file.known() == file.current() == ("sk-one", "sk-two", "sk-three")
    path.write_text("sk-three\n")
    assert file.reread(0.0) == ("sk-three",)
