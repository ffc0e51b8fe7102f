"""The door to the ledger, and its schema, on both databases."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, make_url, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import SQLModel

from tests.support.ledger import ENDPOINT, NOW, a_job, at_once, job_row, put, put_one, rows, state
from tests.support.proxy import Proxy
from worker.errors import SettingsError
from worker.settings import Settings, load_settings
from worker.storage.due import count_published
from worker.storage.engine import Ledger, open_ledger
from worker.storage.errors import DatabaseAway, NotMigrated
from worker.storage.intake import insert_jobs
from worker.storage.migrating import HEAD, SCRIPTS, is_current, migrate
from worker.storage.tables import jobs


def test_the_revision_that_is_written_down_is_the_last_of_the_scripts() -> None:
    assert ScriptDirectory(str(SCRIPTS)).get_heads() == [HEAD]


def test_an_empty_database_is_migrated_once(empty_ledger: Ledger) -> None:
    assert not is_current(empty_ledger)
    first = migrate(empty_ledger)
    assert (first.before, first.after) == (None, HEAD)
    assert is_current(empty_ledger)
    id_ = put_one(empty_ledger)
    again = migrate(empty_ledger)
    assert again.before == again.after == HEAD
    assert state(empty_ledger, id_) == "queued"


def test_two_deployments_at_once_migrate_once(empty_settings: Settings) -> None:
    ledgers = [open_ledger(empty_settings, pool_size=1) for _ in range(2)]
    answers = at_once(2, lambda i: migrate(ledgers[i]).before)
    assert sorted(answers, key=str) == sorted([None, HEAD], key=str)
    for ledger in ledgers:
        ledger.dispose()


def test_the_migrated_schema_is_the_one_of_the_rows(ledger: Ledger) -> None:
    with ledger.write() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_a_database_without_tables_says_what_to_do(empty_ledger: Ledger) -> None:
    with pytest.raises(NotMigrated, match="antrean migrate"), empty_ledger.read() as connection:
        count_published(connection, ENDPOINT)
    with pytest.raises(NotMigrated, match="antrean migrate"):
        put_one(empty_ledger)


def test_what_fails_half_way_leaves_nothing(ledger: Ledger) -> None:
    def work(connection: Connection) -> None:
        insert_jobs(connection, [a_job()], now_ms=NOW)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        ledger.run(work)
    assert rows(ledger, "jobs") == []


def test_an_error_quotes_no_prompt(ledger: Ledger) -> None:
    with pytest.raises(SQLAlchemyError) as caught:
        ledger.run(
            lambda c: c.execute(
                text("INSERT INTO requests (job_id, body) VALUES (NULL, :body)"), {"body": "my secret prompt"}
            )
        )
    assert "parameters hidden" in str(caught.value)


def test_two_transactions_that_deadlock_both_come_through(ledger: Ledger) -> None:
    if not ledger.is_postgresql:
        pytest.skip("SQLite has one writer at a time")
    ids = [put_one(ledger), put_one(ledger)]
    with ledger.write() as connection:
        connection.execute(text("ALTER DATABASE antrean SET deadlock_timeout = '50ms'"))
    ledger.dispose()
    met = Barrier(2)
    tries = [0, 0]

    def cross(i: int) -> None:
        def work(connection: Connection) -> None:
            tries[i] += 1
            for step, id_ in enumerate(ids if i else ids[::-1]):
                connection.execute(text("UPDATE jobs SET claims = claims + 1 WHERE id = :id"), {"id": id_})
                if step == 0 and tries[i] == 1:
                    met.wait(10)

        ledger.run(work)

    at_once(2, cross)
    assert sorted(tries) == [1, 2]
    assert [job_row(ledger, id_).claims for id_ in ids] == [2, 2]


def test_a_serialization_failure_is_run_again(ledger: Ledger) -> None:
    if not ledger.is_postgresql:
        pytest.skip("SQLite has one writer at a time")
    id_ = put_one(ledger)
    met = Barrier(2)
    tries = [0, 0]

    def bump(i: int) -> None:
        def work(connection: Connection) -> None:
            tries[i] += 1
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            connection.execute(text("SELECT count(*) FROM jobs"))
            if tries[i] == 1:
                met.wait(10)
            connection.execute(text("UPDATE jobs SET claims = claims + 1 WHERE id = :id"), {"id": id_})

        ledger.run(work)

    at_once(2, bump)
    assert sorted(tries) == [1, 2]
    assert job_row(ledger, id_).claims == 2


def test_a_locked_sqlite_file_is_a_database_away(sqlite_ledger: Ledger) -> None:
    @event.listens_for(sqlite_ledger.engine, "connect")
    def _hurry(connection: sqlite3.Connection, _entry: object) -> None:
        connection.execute("PRAGMA busy_timeout = 20")

    sqlite_ledger.dispose()
    other = sqlite3.connect(str(sqlite_ledger.engine.url.database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseAway, match="locked"):
        put_one(sqlite_ledger)
    assert rows(sqlite_ledger, "jobs") == []  # readers go on
    other.execute("ROLLBACK")
    other.close()
    put_one(sqlite_ledger)


def test_a_user_without_rights_is_told_so(ledger: Ledger) -> None:
    if not ledger.is_postgresql:
        pytest.skip("SQLite has no users")

    def work(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE ROLE stranger")  # for this transaction, which fails
        connection.exec_driver_sql("SET LOCAL ROLE stranger")
        connection.exec_driver_sql("SELECT id FROM jobs")

    with pytest.raises(DatabaseAway, match=r"its user may not do what antrean does .*permission denied"):
        ledger.run(work)


def test_a_connection_opened_while_the_file_was_read_only_is_not_used_again(sqlite_ledger: Ledger) -> None:
    path = sqlite_ledger.engine.url.database
    is_read_only = True

    @event.listens_for(sqlite_ledger.engine, "do_connect")
    def _open(_dialect: object, _entry: object, _args: object, options: dict[str, object]) -> object:
        if not is_read_only:
            return None
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)

    sqlite_ledger.dispose()
    with pytest.raises(DatabaseAway, match="write-protected"):
        put_one(sqlite_ledger)
    is_read_only = False
    put_one(sqlite_ledger)


def test_a_read_and_a_write_in_sqlite_do_not_wait_for_each_other(sqlite_ledger: Ledger) -> None:
    with sqlite_ledger.read() as reader:
        assert count_published(reader, ENDPOINT) == 0
        put(sqlite_ledger, a_job(), published_at_ms=1)
        assert count_published(reader, ENDPOINT) == 0  # one consistent state
    with sqlite_ledger.read() as reader:
        assert count_published(reader, ENDPOINT) == 1


def test_a_server_that_does_not_listen_is_a_database_away(tmp_path: Path) -> None:
    url = "postgresql://nobody:very-secret@127.0.0.1:1/none"
    ledger = open_ledger(load_settings(home=tmp_path, database_url=url, _env_file=None))
    with pytest.raises(DatabaseAway, match="does not answer") as caught:
        put_one(ledger)
    assert "very-secret" not in str(caught.value)
    with pytest.raises(DatabaseAway), ledger.read():
        pass
    with pytest.raises(DatabaseAway):
        migrate(ledger)


@pytest.mark.postgresql
def test_a_server_that_is_there_and_never_answers_is_a_database_away(
    postgres_url: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing ends such a wait but we: the server's timeouts do not run, and TCP has nothing to complain of."""
    url = make_url(postgres_url(f"e{uuid.uuid4().hex[:12]}"))
    server = next(Path(str(url.query["host"])).glob(".s.PGSQL.*[0-9]"))
    folder = tmp_path_factory.mktemp("h")
    proxy = Proxy(str(server), listen=folder / server.name)
    there = url.update_query_dict({"host": str(folder)}).render_as_string(hide_password=False)
    ledger = open_ledger(load_settings(home=folder, database_url=there, _env_file=None), answer_within_s=0.5)
    try:
        migrate(ledger)
        proxy.freeze()
        began_s = time.monotonic()
        with pytest.raises(DatabaseAway, match=r"no answer for 0\.5 s"):
            put_one(ledger)
        assert 0.5 <= time.monotonic() - began_s < 10, "by itself it would wait for ever"
        proxy.thaw()
        job_id = put_one(ledger)
        assert state(ledger, job_id) == "queued"
    finally:
        ledger.dispose()
        proxy.close()


def test_a_home_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="ANTREAN_HOME"):
        open_ledger(load_settings(home=tmp_path / "file" / "home", _env_file=None))


def test_a_ledger_on_sqlite_does_without_the_driver_of_the_other(tmp_path: Path) -> None:
    """Eight megabytes of every worker."""
    script = (
        "import sys; from worker.settings import load_settings; from worker.storage.engine import open_ledger; "
        f"open_ledger(load_settings(home={str(tmp_path)!r}, _env_file=None)); sys.exit('psycopg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_ledger_of_sqlite_is_closed_to_others_with_all_that_lies_beside_it(tmp_path: Path) -> None:
    """Also one that was open before, and under any umask."""
    path = tmp_path / "ledger.db"
    path.touch(mode=0o644)
    path.chmod(0o644)
    before = os.umask(0)
    try:
        for database in (path, tmp_path / "made" / "ledger.db"):
            url = f"sqlite:///{database}"
            ledger = open_ledger(load_settings(home=tmp_path / "home", database_url=url, _env_file=None))
            migrate(ledger)
            with ledger.read() as connection:
                connection.execute(text("SELECT count(*) FROM jobs"))
                files = sorted(database.parent.glob("ledger.db*"))
                assert len(files) == 3
                assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
            ledger.dispose()
        assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_second_connection_leaves_the_locks_of_the_first_alone(sqlite_ledger: Ledger) -> None:
    """To open and close the file would let them go in the whole process, and another would take the log away."""
    path = str(sqlite_ledger.engine.url.database)
    # The bytes that SQLite locks for as long as a connection is open in WAL mode.
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+b')\n"
        "try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)\n"
        "except OSError: sys.exit(7)"
    )

    def is_held() -> bool:
        return subprocess.run([sys.executable, "-c", script, path], check=False).returncode == 7

    with sqlite_ledger.read() as first, sqlite_ledger.read() as second:
        for connection in (first, second):
            connection.execute(text("SELECT count(*) FROM jobs"))
        assert is_held()
    sqlite_ledger.dispose()
    assert not is_held()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal"])
def test_a_ledger_that_another_user_laid_there_is_not_used(tmp_path: Path, name: str) -> None:
    """Nor a log beside it, which SQLite would take over."""
    (tmp_path / name).touch()
    os.chown(tmp_path / name, 54321, 54321)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = open_ledger(load_settings(home=tmp_path / "home", database_url=url, _env_file=None))
    with pytest.raises(SettingsError, match=r"cannot be used as a ledger \(it belongs to the user 54321\)"):
        migrate(ledger)


def test_a_database_of_another_app_is_left_as_it_is(tmp_path: Path) -> None:
    """Named by a slip of the pen: neither its mode nor the way it is written changes for those who use it."""
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (a)")
        other.commit()
    path.chmod(0o664)
    before = path.read_bytes()
    ledger = open_ledger(Settings(home=tmp_path / "home", database_url=f"sqlite:///{path}"))
    with pytest.raises(NotMigrated), ledger.read() as connection:
        connection.execute(select(jobs.c.id)).all()
    ledger.dispose()
    assert (path.stat().st_mode & 0o777, path.read_bytes()) == (0o664, before)
