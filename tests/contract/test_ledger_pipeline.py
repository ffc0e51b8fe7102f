"""Records leave for PostgreSQL in one piece: what goes wrong in its middle is told apart, and costs no neighbour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.clock import FakeClock
from tests.support.ledger import (
    ENDPOINT,
    NOW,
    a_job,
    claim,
    put,
    record,
    rows,
    setback,
    success,
)
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway
from worker.storage.outcomes import ClaimedJob, Outcome, Recorded, Usage
from worker.storage.reply import Reply
from worker.storage.writer import GroupWriter
from worker.storage.writer_requests import RecordOutcome

MEGABYTE = 1 << 20

only_postgresql = pytest.mark.parametrize(
    "ledger_settings", [pytest.param("postgresql", marks=pytest.mark.postgresql)], indirect=True
)


@pytest.fixture
def writer(ledger: Ledger, clock: FakeClock) -> Iterator[GroupWriter]:
    writer = GroupWriter(ledger, worker_id="w1", endpoint=ENDPOINT, clock=clock, window_s=0.002)
    writer.start()
    yield writer
    assert writer.stop(10)


@pytest.fixture
def trouble(ledger: Ledger) -> Iterator[Callable[[str, str], None]]:
    """`trouble(table, statement)`: the third row of the next ones written to the table has this happen, once."""
    tables: list[str] = []

    def arrange(table: str, statement: str) -> None:
        when = "UPDATE" if table == "jobs" else "INSERT"
        tables.append(table)
        with ledger.write() as connection:
            for command in (
                "CREATE SEQUENCE trouble",  # not rolled back: so it happens once
                "CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                f" IF nextval('trouble') = 3 THEN {statement}; END IF; RETURN NEW; END $$",
                f"CREATE TRIGGER trouble BEFORE {when} ON {table} FOR EACH ROW EXECUTE FUNCTION trouble()",
            ):
                connection.execute(text(command))

    yield arrange
    with ledger.write() as connection:
        for table in tables:
            connection.execute(text(f"DROP TRIGGER trouble ON {table}"))
            connection.execute(text("DROP FUNCTION trouble"))
            connection.execute(text("DROP SEQUENCE trouble"))


def running(ledger: Ledger, count: int) -> list[ClaimedJob]:
    """So many claimed jobs, in the order of their ids."""
    ids = [job.id for job in put(ledger, *[a_job() for _ in range(count)])]
    claimed = claim(ledger, *ids)
    return [claimed[id_] for id_ in sorted(ids)]


def record_in_one_group(writer: GroupWriter, outcomes: list[Outcome]) -> list[Any]:
    """What the writer said to each: what it did, or the exception."""
    for outcome in outcomes:
        writer.open_claims[outcome.job_id] = outcome.claim.token
    replies: list[Reply[Recorded]] = []

    def line_up(_: Any) -> None:
        # In the writer's own thread: all of them are in line before it looks again.
        for outcome in outcomes:
            reply: Reply[Recorded] = Reply()
            replies.append(reply)
            writer._put(RecordOutcome(outcome, reply))

    writer.call(line_up)
    answers: list[Any] = []
    for reply in replies:
        try:
            answers.append(reply.result())
        except Exception as exc:
            answers.append(exc)
    return answers


TABLES = ["jobs", "results", "attempts", "usage"]
LOST = "PERFORM pg_terminate_backend(pg_backend_pid())"
TROUBLES = {
    "a deadlock": "RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'",
    "a serialization failure": "RAISE EXCEPTION 'serialization' USING ERRCODE = '40001'",
}


@only_postgresql
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("what", TROUBLES)
def test_a_conflict_in_the_middle_is_run_again(
    ledger: Ledger, trouble: Callable[[str, str], None], table: str, what: str
) -> None:
    jobs = running(ledger, 5)
    trouble(table, TROUBLES[what])
    assert record(ledger, *[success(job) for job in jobs]) == [Recorded.APPLIED] * 5
    assert len(rows(ledger, "results")) == 5


@only_postgresql
@pytest.mark.parametrize("table", TABLES)
def test_a_connection_lost_in_the_middle_is_a_database_away_and_nothing_is_written(
    ledger: Ledger, trouble: Callable[[str, str], None], table: str
) -> None:
    jobs = running(ledger, 5)
    trouble(table, LOST)
    outcomes = [success(job) for job in jobs]
    with pytest.raises(DatabaseAway):
        record(ledger, *outcomes)
    assert rows(ledger, "results") == rows(ledger, "attempts") == []
    assert record(ledger, *outcomes) == [Recorded.APPLIED] * 5


@only_postgresql
@pytest.mark.parametrize("table", TABLES)
def test_the_writer_records_a_group_whose_connection_is_lost_in_the_middle(
    ledger: Ledger, writer: GroupWriter, trouble: Callable[[str, str], None], table: str
) -> None:
    jobs = running(ledger, 5)
    trouble(table, LOST)
    assert record_in_one_group(writer, [success(job) for job in jobs]) == [Recorded.APPLIED] * 5
    assert len(rows(ledger, "results")) == 5
    assert writer.open_claims == {}


@only_postgresql
@pytest.mark.parametrize("table", TABLES)
def test_a_row_that_the_server_refuses_costs_its_neighbours_nothing(
    ledger: Ledger, writer: GroupWriter, trouble: Callable[[str, str], None], table: str
) -> None:
    jobs = running(ledger, 9)
    column = "id" if table == "jobs" else "job_id"
    refuse = "RAISE EXCEPTION 'no such number' USING ERRCODE = '22003'"
    trouble(table, f"NULL; END IF; IF NEW.{column} = '{jobs[4].id}' THEN {refuse}")
    answers = record_in_one_group(writer, [success(job) for job in jobs])
    assert isinstance(answers.pop(4), Exception)
    assert answers == [Recorded.APPLIED] * 8
    assert len(rows(ledger, "results")) == 8
    assert writer.open_claims == {jobs[4].id: jobs[4].token}


@only_postgresql
def test_a_number_that_no_column_holds_costs_its_neighbours_nothing(
    ledger: Ledger, writer: GroupWriter
) -> None:
    jobs = running(ledger, 9)
    outcomes = [success(job, http_status=2**40 if i == 4 else 200) for i, job in enumerate(jobs)]
    answers = record_in_one_group(writer, list(outcomes))
    assert isinstance(answers.pop(4), Exception)
    assert answers == [Recorded.APPLIED] * 8


ODD = {
    "U+0000": "a\x00b",
    "lone surrogates": "a\ud800b\udfff",
    "ten megabytes": "x" * (10 * MEGABYTE),
    "all of it at once": "\x00\ud800" * MEGABYTE,
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_answers_in_the_middle_of_a_group_cost_their_neighbours_nothing(
    ledger: Ledger, writer: GroupWriter, odd: str
) -> None:
    jobs = running(ledger, 12)
    body = ODD[odd]

    def answer(i: int, job: ClaimedJob) -> Outcome:
        if i == 5:
            raw = b'{"choices":[]}\x00' + body.encode("utf-8", "surrogatepass")
            return success(job, answer=body, reasoning=body, raw=raw, usage=Usage(body[:2000], 1, 2, 3))
        if i == 6:
            return setback(job, not_before_ms=NOW + 9, message=body, request_id=body[:2000])
        return success(job, answer="fine")

    answers = record_in_one_group(writer, [answer(i, job) for i, job in enumerate(jobs)])
    assert answers == [Recorded.APPLIED] * 12
    stored = {row.job_id: row for row in rows(ledger, "results")}
    assert len(stored) == 11
    odd_one = stored.pop(jobs[5].id)
    assert {row.answer for row in stored.values()} == {"fine"}
    assert len(odd_one.answer) == len(body)
    assert bytes(odd_one.raw).endswith(body.encode("utf-8", "surrogatepass"))
