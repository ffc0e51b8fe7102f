"""A second user of this machine: reads nothing of ours, reaches no socket, and plants nothing that we run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Shop, SimulatorProcess, end, wait_until
from worker.files.home import runtime_folder

pytestmark = [
    pytest.mark.real_interpreter,
    pytest.mark.skipif(os.getuid() != 0, reason="only root becomes somebody else"),
]

STRANGER = 54321  # a bare number: it needs no account
# What the stranger tries: lists folders, opens files to read and to write, connects to sockets.
PROBE = """
import json, os, socket, stat, sys
reached, seen = [], 0
def probe(path):
    global seen
    seen += 1
    try:
        kind = os.lstat(path).st_mode
    except OSError:
        return
    if stat.S_ISSOCK(kind):
        with socket.socket(socket.AF_UNIX) as one:
            try:
                one.connect(path)
                reached.append(path)
            except OSError:
                pass
        return
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try:
            os.close(os.open(path, flags | os.O_NONBLOCK))
            reached.append(path)
        except OSError:
            pass
assert os.getuid() == os.geteuid() != 0
for path in json.load(sys.stdin):
    probe(path)
print(json.dumps({"reached": sorted(set(reached)), "seen": seen}))
"""


def python_of_everybody() -> str:
    """An interpreter that the stranger may run as well: this one may be in somebody's own folder."""
    for path in (
        shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin"),
        os.path.realpath(os.sys.executable),
    ):
        if (
            path
            and subprocess.run(
                [path, "-c", ""], user=STRANGER, group=STRANGER, extra_groups=[], check=False
            ).returncode
            == 0
        ):
            return path
    pytest.skip("no Python here that another user may run")


def reached_by_a_stranger(paths: list[Path]) -> list[str]:
    done = subprocess.run(
        [python_of_everybody(), "-I", "-S", "-c", PROBE],
        input=json.dumps([str(path) for path in paths]),
        user=STRANGER,
        group=STRANGER,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["seen"] == len(paths) > 0
    return list(answer["reached"])


def everything_in(folder: Path) -> list[Path]:
    return [Path(base, name) for base, folders, files in os.walk(folder) for name in (*folders, *files)]


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def street() -> Iterator[Path]:
    """A folder that everybody may look into."""
    path = Path(tempfile.mkdtemp(prefix="an", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def lay_out_older_home(home: Path, ledger: Path) -> None:
    """As an older version, or a person, left it: open to look at."""
    home.mkdir(mode=0o755)
    for name in ("logs", "valkey", "spool", "workers", "runs"):
        (home / name).mkdir(mode=0o755)
    for path in (
        home / "logs" / "worker.log",
        home / "logs" / "valkey.log",
        home / "flower.password",
        home / "up.lock",
        ledger,
    ):
        path.touch(mode=0o644)
    (home / "flower.password").write_text("correct horse\n")


@pytest.mark.default_cases(1)
@pytest.mark.usefixtures("no_umask")
@pytest.mark.parametrize("name", [".antrean", "my home"], ids=["sockets-in-the-home", "sockets-in-tmp"])
@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["ledger-in-the-home", "ledger-elsewhere"])
def test_a_second_user_reads_nothing_and_reaches_no_socket(
    street: Path, simulator: SimulatorProcess, name: str, is_elsewhere: bool
) -> None:
    home = street / name
    ledger = street / "books" / "ledger.db" if is_elsewhere else home / "antrean.db"
    (street / "books").mkdir()
    lay_out_older_home(home, ledger)
    (street / "documents").mkdir()
    (street / "documents" / "a.txt").write_text("A text that nobody else may read.")
    (street / "prompt.md").write_text("Say {{ text }}")
    settings = {
        "home": home,
        "base_url": simulator.url,
        "api_key": "k",
        "flower_port": 0,
        "model": "DeepSeek-V3.1",
    }
    shop = Shop(street, settings | ({"database_url": f"sqlite:///{ledger}"} if is_elsewhere else {}))
    try:
        assert shop.antrean("migrate").code == 0
        up = shop.begin("worker.cli", "up", "--workers", "2", "--flower-port", "0", log="up.log")
        log = street / "up.log"

        def is_up() -> bool:
            assert up.poll() is None, log.read_text()
            return "ready: 2 workers" in log.read_text()

        wait_until(is_up, within_s=60, what="all is up")
        done = shop.antrean("run", "documents", "--prompt", "prompt.md", "-o", "results.jsonl")
        assert done.code == 0, done.err
        sockets = runtime_folder(home)
        ours = [
            *everything_in(home),
            sockets,
            *everything_in(sockets),
            *ledger.parent.glob(f"{ledger.name}*"),
        ]
        names = {path.name for path in ours}
        assert {
            "keeper.sock",
            "valkey.sock",
            "stack.lock",
            f"{ledger.name}-wal",
            f"{ledger.name}-shm",
        } <= names
        assert {"worker.log", "flower.cookie-secret", "appendonlydir", "runs", "workers"} <= names
        assert reached_by_a_stranger(ours) == []
        modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in ours}
        assert {oct(mode) for path, mode in modes.items() if path.is_file()} == {"0o600"}, modes
        assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {"0o700"}, modes
        # What a person asked for is the person's: it follows the umask.
        assert stat.S_IMODE((street / "results.jsonl").stat().st_mode) == 0o666
        assert reached_by_a_stranger([street / "results.jsonl"]) == [str(street / "results.jsonl")]
        assert end(up)[0] == 0
        assert reached_by_a_stranger([path for path in (*everything_in(home), ledger) if path.exists()]) == []
    finally:
        shop.close()


@pytest.mark.usefixtures("no_umask")
def test_a_home_that_is_a_project_keeps_its_own_folders_as_they_were(
    street: Path, simulator: SimulatorProcess
) -> None:
    names = ("runs", "spool", "workers", "logs", "run", "valkey")
    for name in names:
        (street / name).mkdir()
        (street / name).chmod(0o755)
        (street / name / "of-the-project").touch(mode=0o644)
    (street / "documents").mkdir()
    (street / "documents" / "a.txt").write_text("A text.")
    (street / "prompt.md").write_text("Say {{ text }}")
    settings = {"home": street, "base_url": simulator.url, "api_key": "k", "model": "DeepSeek-V3.1"}
    shop = Shop(street, settings)
    for _ in range(2):  # from the first command on it is a home
        done = shop.antrean("run", "documents", "--prompt", "prompt.md", "-o", "results.jsonl")
        assert done.code == 0, done.err
    modes = {name: oct(stat.S_IMODE((street / name).stat().st_mode)) for name in names}
    assert modes == dict.fromkeys(names, "0o755")
    mine = [path for name in names for path in (street / name).iterdir() if path.name != "of-the-project"]
    assert {path.name for path in mine} >= {"keeper.log", "worker.log", "valkey.log", "appendonlydir"}
    assert reached_by_a_stranger(mine) == []
    assert all((street / name / "of-the-project").stat().st_mode & 0o777 == 0o644 for name in names)


def test_the_probe_sees_what_is_open(street: Path) -> None:
    (street / "file").touch(mode=0o644)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(street / "socket"))
        (street / "socket").chmod(0o777)
        server.listen(1)
        assert len(reached_by_a_stranger(everything_in(street))) == 2


@pytest.mark.default_cases(3)
@pytest.mark.parametrize(
    "command",
    [
        ("worker.cli", "flower"),
        ("celery", "-A", "worker", "worker"),
        ("worker.cli", "status"),
        ("celery", "-A", "worker", "flower"),
        ("worker.cli", "up"),
    ],
    ids=" ".join,
)
def test_nothing_that_a_second_user_planted_is_run(street: Path, command: tuple[str, ...]) -> None:
    home = street / ".antrean"
    home.mkdir()
    planted = home / "flower.history.json"
    planted.write_text("{}")
    for path in (home, planted):
        os.chown(path, STRANGER, STRANGER)
    shop = Shop(street, {"base_url": "http://127.0.0.1:9", "api_key": "k"})
    try:
        process = shop.begin(*command, log="log")
        assert process.wait(60) == 3, (street / "log").read_text()
    finally:
        shop.close()
    assert f"belongs to the user {STRANGER}" in " ".join((street / "log").read_text().split())
    assert [path.name for path in home.iterdir()] == [planted.name]
