"""A ledger of an earlier antrean, with what is in it, is brought to this one's schema."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, Table, event, text

from tests.support.ledger import ENDPOINT, NOW, rows
from worker.settings import load_settings
from worker.storage.batches import count_states, fetch_batch, finish_submission, hold_batch
from worker.storage.claims import claim_jobs
from worker.storage.engine import Ledger, open_ledger
from worker.storage.errors import DatabaseAway
from worker.storage.limits import LimitKind, fetch_changes, fetch_limits, set_limits
from worker.storage.migrating import HEAD, REVISIONS, SCRIPTS, Migrated, migrate
from worker.storage.reading import iterate_batch_outcomes
from worker.storage.weights import set_weight


def bring_to(ledger: Ledger, revision: str) -> None:
    """The schema as it was at this revision."""
    with ledger.write() as connection:
        config = Config()
        config.set_main_option("script_location", str(SCRIPTS))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    with ledger.read() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == revision


def write(connection: Connection, table: str, **values: Any) -> None:
    """A row as its table was then; what is not given is empty."""
    found = Table(table, MetaData(), autoload_with=connection)
    empty: dict[type, Any] = {str: "", int: 0, bool: False, bytes: b"", object: {}}
    needed = {c.name: empty[c.type.python_type] for c in found.columns if not c.nullable}
    connection.execute(found.insert().values({**needed, **values}))


def write_batch(connection: Connection, id_: str, *, kind: str, ended: int) -> None:
    """A batch of two jobs, of which the first so many have their result."""
    write(
        connection,
        "batches",
        id=id_,
        kind=kind,
        endpoint=ENDPOINT,
        total=2,
        created_at_ms=NOW,
        submitted_at_ms=NOW,
    )
    for place in (1, 2):
        job = f"{id_}-{place}"
        is_ended = place <= ended
        facts = {"batch_id": id_, "position": place, "custom_id": job, "endpoint": ENDPOINT, "is_bulk": True}
        write(
            connection,
            "jobs",
            id=job,
            state="succeeded" if is_ended else "queued",
            ended_at_ms=NOW if is_ended else None,
            **facts,
        )
        write(connection, "requests", job_id=job, body="{}")
        if is_ended:
            write(connection, "results", job_id=job, number=1, http_status=200, raw=b"{}")


def test_a_ledger_without_wants_keeps_its_batches_and_their_jobs(empty_ledger: Ledger) -> None:
    ledger = empty_ledger
    bring_to(ledger, "0001")
    batches = {"over": ("run", 2), "left": ("run", 1), "file": ("submit", 1)}
    with ledger.write() as connection:
        for id_, (kind, ended) in batches.items():
            write_batch(connection, id_, kind=kind, ended=ended)

    assert migrate(ledger).before == "0001"

    assert migrate(ledger).before == HEAD
    held = {row.id for row in rows(ledger, "batches") if row.held_at_ms is not None}
    assert held == {"over"}, "a run that has ended is held; one with jobs left may still be at work"
    for id_, (_, ended) in batches.items():
        names = [one.custom_id for one in iterate_batch_outcomes(ledger, id_)]
        assert names == [f"{id_}-{place}" for place in range(1, ended + 1)]
        assert ledger.run(partial(finish_submission, batch_id=id_, now_ms=NOW)) == 2
        with ledger.read() as connection:
            assert sum(count_states(connection, id_).values()) == 2
    ledger.run(partial(hold_batch, batch_id="left", now_ms=NOW))
    got = ledger.run(
        lambda c: claim_jobs(
            c, ["left-2", "file-2"], worker_id="w", token="t9", endpoint=ENDPOINT, now_ms=NOW
        )
    )
    assert set(got) == {"file-2"}


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_a_ledger_of_each_earlier_revision_keeps_its_jobs_and_gets_limits_and_weights(
    empty_ledger: Ledger, revision: str
) -> None:
    ledger = empty_ledger
    bring_to(ledger, revision)
    with ledger.write() as connection:
        write_batch(connection, "one", kind="submit", ended=1)
    assert migrate(ledger).before == revision
    assert {row.id: row.state for row in rows(ledger, "jobs")} == {"one-1": "succeeded", "one-2": "queued"}
    with ledger.read() as connection:
        assert fetch_limits(connection) == fetch_changes(connection, at_most=9) == []
    ledger.run(partial(set_limits, endpoint=ENDPOINT, values={LimitKind.IN_FLIGHT: 60}, now_ms=NOW))
    with ledger.read() as connection:
        assert [one.value for one in fetch_limits(connection, ENDPOINT)] == [60]
        assert [one.new for one in fetch_changes(connection, at_most=9)] == [60]
        before = fetch_batch(connection, "one")
    ledger.run(partial(set_weight, batch_id="one", weight=0.5))
    with ledger.read() as connection:
        after = fetch_batch(connection, "one")
    assert before is not None
    assert after is not None
    assert (before.weight, after.weight) == (1.0, 0.5)


@pytest.fixture
def empty_postgres(postgres_url: Callable[[str], str], tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Opens an empty database on PostgreSQL, the same one each time."""
    settings = load_settings(
        home=tmp_path, database_url=postgres_url(f"m{uuid.uuid4().hex[:12]}"), _env_file=None
    )
    opened: list[Ledger] = []

    def make(**limits: float) -> Ledger:
        opened.append(open_ledger(settings, **limits))
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.dispose()


SLOW_DDL = """
CREATE TABLE seen (tag text, statement_timeout text, lock_timeout text);
CREATE FUNCTION look() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seen VALUES (tg_tag, current_setting('statement_timeout'), current_setting('lock_timeout'));
    IF tg_tag = 'CREATE INDEX' AND (SELECT count(*) FROM seen WHERE tag = 'CREATE INDEX') = 1 THEN
        PERFORM pg_sleep(1.5);
    END IF;
END $$;
CREATE EVENT TRIGGER looks ON ddl_command_start EXECUTE FUNCTION look();
"""


@pytest.mark.postgresql
def test_a_statement_of_a_migration_may_take_as_long_as_it_needs(
    empty_postgres: Callable[..., Ledger],
) -> None:
    """An index on a large ledger takes minutes; every other statement is given half one, by the server and by us."""
    ledger = empty_postgres(answer_within_s=1.0)
    with ledger.write() as connection:
        connection.exec_driver_sql(SLOW_DDL)

    assert migrate(ledger).after == HEAD

    with ledger.read() as connection:
        seen = connection.execute(text("SELECT DISTINCT statement_timeout, lock_timeout FROM seen")).all()
        after = connection.execute(text("SELECT current_setting('statement_timeout')")).scalar()
    assert [tuple(row) for row in seen] == [("0", "10s")], (
        "who waits for a table keeps others waiting behind it"
    )
    assert after == "30s", "the limits are lifted for the migration alone"
    with pytest.raises(DatabaseAway, match="no answer for 1 s"), ledger.read() as connection:
        connection.execute(text("SELECT pg_sleep(5)"))


@pytest.mark.postgresql
def test_a_second_deployment_waits_for_the_first_as_long_as_it_migrates(
    empty_postgres: Callable[..., Ledger],
) -> None:
    first, second = empty_postgres(), empty_postgres(answer_within_s=1.0)
    asked: list[tuple[str, str]] = []

    @event.listens_for(second.engine, "before_cursor_execute")
    def _look(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "pg_advisory_xact_lock" in statement:
            found = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
            asked.append(cursor.execute(found).fetchone())

    done: list[Migrated] = []
    waiter = threading.Thread(target=lambda: done.append(migrate(second)))
    with first.write() as connection:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({0x616E7472})"))
        waiter.start()
        waiter.join(1.5)
        assert waiter.is_alive(), "longer than any other answer is waited for"
    waiter.join(30)
    assert [one.after for one in done] == [HEAD]
    assert asked == [("0", "0")]
