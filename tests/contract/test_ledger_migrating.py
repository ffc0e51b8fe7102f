"""A ledger of an earlier antrean, with what is in it, is brought to this one's schema."""

from __future__ import annotations

from functools import partial

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext

from tests.support.ledger import ENDPOINT, NOW, a_job, claim, put, record, rows, success
from worker.storage.batches import count_states, finish_submission, hold_batch, make_batch
from worker.storage.claims import claim_jobs
from worker.storage.engine import Ledger
from worker.storage.migrating import HEAD, SCRIPTS, migrate
from worker.storage.reading import iterate_batch_outcomes
from worker.storage.tables import batches


def bring_to(ledger: Ledger, revision: str) -> None:
    """The schema as it was at this revision."""
    with ledger.write() as connection:
        config = Config()
        config.set_main_option("script_location", str(SCRIPTS))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    with ledger.read() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == revision


def a_batch(ledger: Ledger, id_: str, *, kind: str) -> None:
    ledger.run(
        partial(
            make_batch, batch_id=id_, kind=kind, label=id_, endpoint=ENDPOINT, idempotency_key=id_, now_ms=NOW
        )
    )
    with ledger.write() as connection:
        connection.execute(batches.update().where(batches.c.id == id_).values(submitted_at_ms=NOW, total=2))


def test_a_ledger_without_wants_keeps_its_batches_and_their_jobs(empty_ledger: Ledger) -> None:
    ledger = empty_ledger
    bring_to(ledger, "0001")
    for id_, kind in (("over", "run"), ("left", "run"), ("file", "submit")):
        a_batch(ledger, id_, kind=kind)
        jobs = [
            a_job(batch_id=id_, position=place, custom_id=f"{id_}{place}", is_bulk=True) for place in (1, 2)
        ]
        known = put(ledger, *jobs)
        ended = known if id_ == "over" else known[:1]
        record(
            ledger, *(success(job) for job in claim(ledger, *(job.id for job in ended), token=id_).values())
        )

    assert migrate(ledger).before == "0001"

    assert migrate(ledger).before == HEAD
    held = {row.id for row in rows(ledger, "batches") if row.held_at_ms is not None}
    assert held == {"over"}, "a run that has ended is held; one with jobs left may still be at work"
    for id_, ended_count in (("over", 2), ("left", 1), ("file", 1)):
        names = [one.custom_id for one in iterate_batch_outcomes(ledger, id_)]
        assert names == [f"{id_}{place}" for place in range(1, ended_count + 1)]
        assert ledger.run(partial(finish_submission, batch_id=id_, now_ms=NOW)) == 2
        with ledger.read() as connection:
            assert sum(count_states(connection, id_).values()) == 2
    ledger.run(partial(hold_batch, batch_id="left", now_ms=NOW))
    ids = [row.id for row in rows(ledger, "jobs", state="queued")]
    got = ledger.run(lambda c: claim_jobs(c, ids, worker_id="w", token="t9", endpoint=ENDPOINT, now_ms=NOW))
    assert [rows(ledger, "jobs", id=id_)[0].batch_id for id_ in got] == ["file"]
