"""Where an embedded stack keeps its sockets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.errors import AntreanError, ExitCode
from worker.files.home import (
    broker_socket,
    broker_url,
    control_socket,
    last_line,
    open_log,
    prepare_home,
    runtime_folder,
)


def test_the_sockets_live_in_the_home_folder() -> None:
    assert runtime_folder(Path("/srv/antrean")) == Path("/srv/antrean/run")
    assert broker_url(Path("/srv/antrean")) == "redis+socket:///srv/antrean/run/valkey.sock?virtual_host=0"


@pytest.mark.parametrize("name", ["x" * 120, "with space", "semi;colon", "per%20cent", "question?", "Übung"])
def test_a_path_that_no_socket_or_url_can_carry_falls_back_to_a_short_folder(name: str) -> None:
    folder = runtime_folder(Path("/srv") / name)
    assert folder.parent == Path("/tmp")
    assert str(os.getuid()) in folder.name
    assert folder == runtime_folder(Path("/srv") / name)
    assert folder != runtime_folder(Path("/srv") / f"{name}2")


@pytest.mark.parametrize("length", range(60, 110))
def test_no_socket_path_is_longer_than_the_system_allows(length: int) -> None:
    home = Path("/" + "h" * length)
    assert len(os.fsencode(control_socket(home))) <= 107
    assert len(os.fsencode(broker_socket(home))) <= 107


def test_a_link_to_a_home_leads_to_the_same_sockets(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert runtime_folder(tmp_path / "link") == runtime_folder(tmp_path / "real")


def test_a_home_is_made_private_with_the_folders_above_it(tmp_path: Path) -> None:
    home = prepare_home(tmp_path / "a" / "b", has_broker=True)
    for folder in (tmp_path / "a", home, home / "logs", home / "valkey", runtime_folder(home)):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_written_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AntreanError, match=r"cannot be written.*ANTREAN_HOME") as error:
        prepare_home(tmp_path / "file" / "home", has_broker=True)
    assert error.value.exit_code == ExitCode.SETTINGS


@pytest.mark.skipif(os.getuid() == 0, reason="permissions do not bind root")
def test_a_read_only_home_is_told_with_the_way_out(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AntreanError, match=r"cannot be written.*ANTREAN_HOME"):
        prepare_home(tmp_path, has_broker=True)


@pytest.mark.parametrize("name", ["dump.rdb", "appendonlydir", "appendonly.aof"])
def test_data_of_a_projects_own_valkey_are_left_alone_by_every_command(tmp_path: Path, name: str) -> None:
    """Also by the second one."""
    (tmp_path / "valkey").mkdir(mode=0o755)
    (tmp_path / "valkey" / name).touch(mode=0o644)
    for _ in range(2):
        with pytest.raises(
            AntreanError, match=rf"valkey is not antrean's: it holds {name} .*ANTREAN_HOME"
        ) as error:
            prepare_home(tmp_path, has_broker=True)
        assert error.value.exit_code == ExitCode.SETTINGS
    assert [path.name for path in tmp_path.iterdir()] == ["valkey"], "nothing else is made there"
    assert (tmp_path / "valkey").stat().st_mode & 0o777 == 0o755
    prepare_home(tmp_path, has_broker=False)  # with a broker elsewhere they are in nobody's way


def test_data_of_our_own_valkey_and_other_files_beside_it_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "notes.txt").touch()
    prepare_home(tmp_path, has_broker=True)
    (tmp_path / "broker.lock").touch()  # as the keeper does before it starts the first Valkey
    (tmp_path / "valkey" / "appendonlydir").mkdir()
    prepare_home(tmp_path, has_broker=True)


def test_a_home_that_had_its_broker_elsewhere_takes_no_data_of_another_valkey_over(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "dump.rdb").touch()
    prepare_home(tmp_path, has_broker=False)
    with pytest.raises(AntreanError, match=r"it holds dump\.rdb of another Valkey"):
        prepare_home(tmp_path, has_broker=True)


def test_a_runtime_folder_that_somebody_else_laid_out_is_not_used(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 120)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    runtime_folder(home).symlink_to(elsewhere)
    try:
        with pytest.raises(AntreanError, match="not a folder of yours"):
            prepare_home(home, has_broker=True)
    finally:
        runtime_folder(home).unlink()


def test_a_run_folder_of_a_home_that_was_there_before_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    prepare_home(tmp_path, has_broker=True)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(AntreanError, match="run can be written by everybody"):
        prepare_home(tmp_path, has_broker=True)


def test_the_last_line_of_a_log_is_the_last_that_is_not_blank(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_text("first\nsecond\n\n")
    assert last_line(log) == "second"


def test_a_log_that_grew_large_is_moved_aside(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(11 * 1024 * 1024)
    with open_log(log) as file:
        file.write(b"new\n")
    assert log.read_bytes() == b"new\n"
    assert (tmp_path / "log.1").exists()
