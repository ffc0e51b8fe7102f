"""A ledger of an earlier antrean, with what is in it, is brought to this one's schema."""

from __future__ import annotations

from functools import partial
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, Table

from tests.support.ledger import ENDPOINT, NOW, rows
from worker.storage.batches import count_states, finish_submission, hold_batch
from worker.storage.claims import claim_jobs
from worker.storage.engine import Ledger
from worker.storage.migrating import HEAD, SCRIPTS, migrate
from worker.storage.reading import iterate_batch_outcomes


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
