"""What antrean writes for itself is its user's alone, whatever the umask and whatever was there before."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.files.private import (
    close_file,
    close_home,
    find_distrust,
    make_private_folder,
    open_private,
    prepare_folder,
)

STRANGER = 54321
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_files_and_folders_are_private_under_any_umask(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    make_private_folder(inner)
    os.close(open_private(inner / "file", os.O_WRONLY | os.O_CREAT))
    assert [mode(path) for path in (tmp_path / "a", inner, inner / "file")] == [0o700, 0o700, 0o600]


def test_a_file_that_was_there_before_is_closed_when_it_is_used(tmp_path: Path) -> None:
    for name in ("opened", "closed", "read-only"):
        (tmp_path / name).write_text("old\n")
        (tmp_path / name).chmod(0o444 if name == "read-only" else 0o666)
    os.close(open_private(tmp_path / "opened", os.O_RDWR))
    close_file(tmp_path / "closed")
    close_file(tmp_path / "read-only")
    close_file(tmp_path / "missing")
    assert [mode(tmp_path / name) for name in ("opened", "closed", "read-only")] == [0o600, 0o600, 0o400]
    assert (tmp_path / "opened").read_text() == "old\n"


def test_a_folder_that_was_there_before_keeps_its_mode_and_a_new_one_is_private(tmp_path: Path) -> None:
    """A project's `runs` were closed to its group once antrean wrote a lock there."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o755)
    for name in ("runs", "spool"):
        prepare_folder(tmp_path / name)
    assert (mode(tmp_path / "runs"), mode(tmp_path / "spool")) == (0o755, 0o700)


def test_a_folder_that_others_could_write_in_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="can be written by everybody"):
        prepare_folder(folder)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("runs", "batch_x.lock"),
        ("workers", "w1.lock"),
        ("spool", "w1.spool"),
        ("logs", "worker-2.log.1"),
        ("valkey", "appendonlydir"),
        ("simulation", "antrean.db-wal"),
    ],
)
def test_of_a_home_only_the_folders_are_closed_that_hold_nothing_else(
    tmp_path: Path, name: str, ours: str
) -> None:
    (tmp_path / "stack.lock").touch()
    folder = tmp_path / name
    folder.mkdir()
    folder.chmod(0o755)
    for file in (ours, "experiment-1"):
        (folder / file).touch()
    close_home(tmp_path)
    assert mode(folder) == 0o755, "it is a project's own as well"
    (folder / "experiment-1").unlink()
    close_home(tmp_path)
    assert mode(folder) == 0o700


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "worker.log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="it is a link"):
        open_private(tmp_path / "worker.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    assert (tmp_path / "precious").read_text() == "mine"


@AS_ROOT
def test_a_file_of_another_user_is_neither_opened_nor_closed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("x")
    os.chown(tmp_path / "theirs", STRANGER, STRANGER)
    with pytest.raises(PermissionError, match=f"belongs to the user {STRANGER}"):
        open_private(tmp_path / "theirs", os.O_RDWR)
    with pytest.raises(PermissionError, match=f"belongs to the user {STRANGER}"):
        close_file(tmp_path / "theirs")


def test_what_only_we_can_write_is_trusted(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert find_distrust(tmp_path) is None
    assert find_distrust(tmp_path / "missing") is None


@pytest.mark.parametrize("bits", [0o777, 0o702])
def test_what_everybody_can_write_is_not(tmp_path: Path, bits: int) -> None:
    tmp_path.chmod(bits)
    distrust = find_distrust(tmp_path)
    assert distrust is not None
    assert (distrust.reason, distrust.is_ended_by_chmod) == ("can be written by everybody", True)


@AS_ROOT
def test_a_group_that_nobody_knows_counts(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    os.chown(tmp_path, -1, STRANGER)
    distrust = find_distrust(tmp_path)
    assert distrust is not None
    assert distrust.reason == f"can be written by the group {STRANGER}"


@pytest.mark.skipif(
    [user.pw_uid for user in pwd.getpwall() if user.pw_gid == os.getgid()] != [os.getuid()]
    or not set(grp.getgrgid(os.getgid()).gr_mem) <= {pwd.getpwuid(os.getuid()).pw_name},
    reason="others are in this user's group",
)
def test_a_group_without_another_member_is_this_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    os.chown(tmp_path, -1, os.getgid())
    assert find_distrust(tmp_path) is None


@AS_ROOT
@pytest.mark.parametrize("is_root_trusted", [True, False])
def test_what_belongs_to_another_user_is_not_trusted_nor_is_a_link_of_theirs(
    tmp_path: Path, is_root_trusted: bool
) -> None:
    theirs, link = tmp_path / "theirs", tmp_path / "link"
    theirs.touch()
    os.chown(theirs, STRANGER, STRANGER)
    link.symlink_to(tmp_path)
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    for path in (theirs, link):
        distrust = find_distrust(path, root_is_trusted=is_root_trusted)
        assert distrust is not None
        assert (distrust.reason, distrust.is_ended_by_chmod) == (f"belongs to the user {STRANGER}", False)


def test_what_is_no_plain_file_keeps_its_mode(tmp_path: Path) -> None:
    """/dev/null was closed to everybody else on the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    pipe.chmod(0o666)
    os.close(open_private(pipe, os.O_RDWR))
    close_file(pipe)
    assert pipe.stat().st_mode & 0o777 == 0o666


def test_a_folder_that_is_no_home_is_left_as_it_is_and_so_is_what_a_link_leads_to(tmp_path: Path) -> None:
    """Of a web server its logs, of a project its runs: one command that only looked had closed them."""
    home, shared = tmp_path / "project", tmp_path / "shared"
    for folder in (home / "logs", home / "runs", shared):
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    (home / "workers").symlink_to(shared)
    (home / "antrean.dbnotes").write_text("mine")
    (home / "antrean.dbnotes").chmod(0o644)
    close_home(home)
    assert (mode(home / "logs"), mode(home / "runs")) == (0o755, 0o755)
    (home / "stack.lock").touch()
    (home / "main.py").touch()
    close_home(home)
    assert (mode(home / "logs"), mode(home / "runs")) == (0o755, 0o755), "it holds other things as well"
    (home / "main.py").unlink()
    close_home(home)
    assert (mode(home / "logs"), mode(home / "runs")) == (0o700, 0o700)
    assert (mode(shared), mode(home / "antrean.dbnotes")) == (0o755, 0o644)


@AS_ROOT
def test_a_file_of_another_user_that_antrean_does_not_use_stands_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "stack.lock").touch()
    (tmp_path / "antrean.db.bak").touch()
    os.chown(tmp_path / "antrean.db.bak", STRANGER, -1)
    close_home(tmp_path)
