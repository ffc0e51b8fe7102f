"""SQLite's file is busy, its disk full, or read-only. Invariant 5: what was paid for is recorded when it is over."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.arena import Arena, Figures, close_arena, make_arena
from tests.support.outage import assert_nobody_was_lost, come_back, spooled, stay_away
from tests.support.processes import Shop, SimulatorProcess

_DISK_MB = 64


def run_to_the_middle(arena: Arena) -> None:
    """Two workers, with most of the jobs still to do."""
    slots = arena.size(50, 8)
    arena.queue(arena.size(1000, 100))
    for _ in range(2):
        arena.worker(concurrency=slots)
    arena.wait_for(
        lambda: arena.ended() >= slots // 2 and arena.in_flight() >= slots // 2, "the run is in its middle"
    )


@pytest.mark.full
@pytest.mark.parametrize("arena", ["sqlite"], indirect=True)
@pytest.mark.simulator("--latency", "0.5")
@pytest.mark.parametrize(
    "past_the_timeout", [False, pytest.param(True, marks=pytest.mark.storm)], ids=["waits", "gives up"]
)
def test_another_process_holds_the_sqlite_file(arena: Arena, past_the_timeout: bool) -> None:
    held_s = 20 if past_the_timeout else arena.size(10, 3)
    run_to_the_middle(arena)
    with closing(sqlite3.connect(arena.folder / "ledger.db", isolation_level=None, timeout=20)) as other:
        other.execute("BEGIN IMMEDIATE")
        stay_away(arena, held_s)
        recover_s = come_back(arena, lambda: other.execute("ROLLBACK"))
    arena.conclude(f"SQLite busy for {held_s} s", most_extra_calls=0, recover_s=recover_s)
    assert_nobody_was_lost(arena)


def run_as_root(*command: str) -> None:
    """Runs a command that asks for privileges; skips the test where there are none."""
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"there is no {command[0]} here")
    if done.returncode:
        pytest.skip(f"{command[0]} is not allowed here: {done.stderr.decode().strip()}")


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small disk of its own in an arena's folder."""
    folder = Path(tempfile.mkdtemp(prefix="an", dir="/tmp"))
    disk = folder / "disk"
    disk.mkdir()
    try:
        run_as_root("mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(disk))
        yield disk
        run_as_root("umount", "--lazy", str(disk))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fill(disk: Path) -> Path:
    """A file that takes all that was left on the disk."""
    filler = disk / "filler"
    with (
        Path("/dev/zero").open("rb", buffering=0) as zeros,
        filler.open("wb", buffering=0) as file,
        pytest.raises(OSError, match="No space left"),
    ):
        shutil.copyfileobj(zeros, file, 1 << 12)
    return filler


@pytest.mark.full
@pytest.mark.parametrize("where", [pytest.param("elsewhere", marks=pytest.mark.storm), "on the same disk"])
def test_the_disk_is_full(disk: Path, where: str, is_full: bool, report: Callable[[Figures], None]) -> None:
    simulator = SimulatorProcess("--latency", "0.5")
    home = (disk if where == "on the same disk" else disk.parent) / ".antrean"
    arena = make_arena(
        disk.parent,
        "sqlite",
        simulator,
        is_full=is_full,
        report=report,
        database_url=f"sqlite:///{disk}/ledger.db",
        home=home,
    )
    try:
        run_to_the_middle(arena)
        filler = fill(disk)
        arena.wait_for(lambda: "ledger.away" in arena.worker_log(), "the ledger cannot be written")
        stay_away(arena, arena.size(10, 3))
        if where == "elsewhere":
            assert spooled(arena) > 0
        else:
            assert "spool.unwritable" in arena.worker_log()
            assert spooled(arena) == 0
        recover_s = come_back(arena, filler.unlink)
        arena.conclude(f"disk full, spool {where}", most_extra_calls=0, recover_s=recover_s)
        assert_nobody_was_lost(arena)
    finally:
        close_arena(arena)
        simulator.close()


def test_a_full_disk_is_called_one_by_each_command(disk: Path) -> None:
    (disk / "docs").mkdir()
    (disk / "docs" / "a.txt").write_text("text")
    (disk / "p.md").write_text("{{ text }}")
    shop = Shop(disk, {"home": disk / ".antrean", "base_url": "http://127.0.0.1:1"})
    assert shop.antrean("status").code == 0
    fill(disk)
    (disk / ".antrean" / "antrean.db-wal").unlink(missing_ok=True)
    run = ["run", "docs", "-p", "p.md", "--simulate"]
    for command in (["pause"], ["worker"], ["up", "--no-flower"], ["flower"], run):
        done = shop.antrean(*command)
        assert (done.code, "is full: make room on it" in done.err) == (4, True), (command, done.err)
        assert "Traceback" not in done.err


@pytest.mark.full
@pytest.mark.parametrize("arena", ["sqlite"], indirect=True)
@pytest.mark.simulator("--latency", "0.5")
def test_the_sqlite_file_becomes_read_only(arena: Arena) -> None:
    run_to_the_middle(arena)
    files = [str(path) for path in (arena.folder / "ledger.db-wal", arena.folder / "ledger.db")]
    run_as_root("chattr", "+i", *files)
    try:
        arena.wait_for(lambda: "ledger.away" in arena.worker_log(), "the ledger cannot be written")
        stay_away(arena, arena.size(10, 3))
        assert spooled(arena) > 0
        recover_s = come_back(arena, lambda: run_as_root("chattr", "-i", *files))
    finally:
        run_as_root("chattr", "-i", *files)  # a file that is immutable could not be removed
    arena.conclude("SQLite read-only", most_extra_calls=0, recover_s=recover_s)
    assert_nobody_was_lost(arena)
