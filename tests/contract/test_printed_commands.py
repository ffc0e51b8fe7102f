"""Every command that tells of jobs, over a ledger in which all that comes from outside is hostile."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from schemas.failure import FailureKind
from tests.support.ledger import ENDPOINT, NOW, claim_one, put_one, record, setback, success
from worker.cli.console import complain
from worker.cli.main import app
from worker.settings import load_settings
from worker.storage.batches import finish_submission, make_batch
from worker.storage.migrating import prepare_ledger
from worker.storage.outcomes import Usage
from worker.storage.pauses import pause
from worker.storage.workers import register_worker

HOSTILE = "=[/nope][bold]\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil"
BATCH = f"b{HOSTILE}"
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def job(own_folder: Path) -> str:
    """A job that failed, of a batch, a worker and an endpoint of such names; one beside it succeeded, one waits."""
    ledger = prepare_ledger(load_settings(_env_file=None))

    def prepare(connection: Any) -> None:
        named = {"label": HOSTILE, "endpoint": ENDPOINT, "idempotency_key": HOSTILE}
        make_batch(connection, BATCH, kind="submit", **named, now_ms=NOW)
        facts = {"hostname": HOSTILE, "pid": 7, "slots": 1, "lease_ms": 1000, "now_ms": NOW}
        register_worker(connection, "w1", endpoint=HOSTILE, **facts)
        pause(connection, HOSTILE, HOSTILE, NOW)
        pause(connection, ENDPOINT, HOSTILE, NOW)

    ledger.run(prepare)
    body = json.dumps({"model": HOSTILE, "messages": [{"role": HOSTILE, "content": HOSTILE}]})
    ids = [
        put_one(
            ledger,
            body=body,
            model=HOSTILE,
            batch_id=BATCH,
            position=number,
            custom_id=f"{HOSTILE}{number}",
            source_key=HOSTILE,
        )
        for number in range(1, 4)
    ]
    ledger.run(lambda c: finish_submission(c, batch_id=BATCH, now_ms=NOW))
    told = {"message": HOSTILE, "request_id": HOSTILE}
    record(ledger, setback(claim_one(ledger, ids[0]), kind=FailureKind.REJECTED, **told))
    answer = {"answer": HOSTILE, "reasoning": HOSTILE, "finish_reason": HOSTILE, "request_id": HOSTILE}
    usage = Usage(HOSTILE, 3, 4, 7, 1, 2)
    record(ledger, success(claim_one(ledger, ids[1]), **answer, usage=usage))
    record(ledger, setback(claim_one(ledger, ids[2]), not_before_ms=NOW + 10**12, is_blocked=True, **told))
    ledger.dispose()
    return ids[0]


COMMANDS = {
    "status": ["status"],
    "status of a batch": ["status", BATCH],
    "status as JSON": ["status", "--json"],
    "batches": ["batches"],
    "batches as JSON": ["batches", "--json"],
    "workers": ["workers"],
    "workers as JSON": ["workers", "--json"],
    "usage by model": ["usage", "--by", "model"],
    "usage by batch": ["usage", "--by", "batch"],
    "usage as JSON": ["usage", "--by", "batch", "--json"],
    "usage as CSV": ["usage", "--by", "custom", "--csv"],
    "results": ["results", BATCH],
    "show": ["show", "JOB"],
    "show with content": ["show", "JOB", "--content"],
    "show as JSON": ["show", "JOB", "--content", "--json"],
    "resume": ["resume"],
    "cancel": ["cancel", BATCH],
    "retry": ["retry", BATCH, "--failed", "--cancelled"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_comes_from_outside_steers_no_terminal_and_is_no_markup(job: str, name: str) -> None:
    done = CliRunner().invoke(app, [job if one == "JOB" else one for one in COMMANDS[name]])
    assert done.exception is None, done.exception
    assert done.output
    found = STEERS.search(done.output)
    assert found is None, ascii(done.output[max(0, found.start() - 60) : found.end() + 20])
    if name not in ("cancel", "retry"):
        assert "[/nope][bold]" in done.output, "shown as it is written"
    if name.endswith("JSON"):
        assert any(HOSTILE in one for one in strings(json.loads(done.stdout))), (
            "JSON means what is in the ledger"
        )


def strings(value: Any) -> list[str]:
    """All texts in a decoded JSON value."""
    if isinstance(value, dict):
        return [text for one in value.values() for text in strings(one)]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


def test_a_spreadsheet_runs_nothing_of_what_usage_tells(job: str) -> None:
    done = CliRunner().invoke(app, ["usage", "--by", "custom", "--csv"])
    header, row = csv.reader(io.StringIO(done.stdout))
    assert header[0] == "custom_id"
    assert row[0].startswith("'=[/nope]")
    assert row[1:4] == ["1", "1", "0"], "numbers stay numbers"


@pytest.mark.parametrize(
    "arguments", [["status", HOSTILE], ["show", HOSTILE], ["submit", "a", HOSTILE], [f"--x{HOSTILE[1:]}"]]
)
def test_what_is_wrong_with_an_argument_is_told_harmlessly(
    job: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    done = CliRunner().invoke(app, arguments)
    told = done.output
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        complain(str(done.exception))
        told += capsys.readouterr().err
    assert "nope" in told and STEERS.search(told) is None
