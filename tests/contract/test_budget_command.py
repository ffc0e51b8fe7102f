"""`antrean budget` over a ledger without a broker."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from tests.support.ledger import ENDPOINT, NOW, a_job, put
from worker.cli.main import app
from worker.errors import InputError
from worker.operations.budgets import check_prices
from worker.policy.budgets import Limit
from worker.settings import load_settings
from worker.storage.batches import make_batch
from worker.storage.migrating import prepare_ledger
from worker.storage.tables import budgets


@pytest.fixture
def home(own_folder: Path) -> Path:
    """A folder whose ledger has the batch `b` with a job of the model `m`."""
    ledger = prepare_ledger(load_settings(_env_file=None))
    make = partial(make_batch, kind="submit", label="b", endpoint=ENDPOINT, idempotency_key=None, now_ms=NOW)
    ledger.run(partial(make, batch_id="b"))
    put(ledger, a_job(batch_id="b", model="m"))
    return own_folder


def say(*words: str, command: str = "budget") -> str:
    done = CliRunner().invoke(app, [command, "b", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_budget_in_dollars_without_a_price_is_warned_of(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"the price of m at {ENDPOINT} is not known here" in " ".join(say("5usd").split())
    assert "not known" not in say("5000tok")
    prices = home / "prices.toml"
    prices.write_text("[models.m]\ninput = 1\noutput = 2\n")
    monkeypatch.setenv("ANTREAN_PRICES_FILE", str(prices))
    assert "$0 of $5.00 spent" in say("5usd")
    assert "not known" not in say("5usd")


def test_status_does_not_speak_of_a_budget_that_was_taken_back(home: Path) -> None:
    say("5000tok")
    assert "budget 0 of 5,000 tokens spent" in say(command="status")
    say("none")
    assert "budget" not in say(command="status")


def test_status_as_json_says_that_jobs_wait_at_a_budget(home: Path) -> None:
    say("5000tok")
    ledger = prepare_ledger(load_settings(_env_file=None))
    ledger.run(
        lambda connection: connection.execute(update(budgets).values(waits_since_ms=NOW, wanted_tokens=9))
    )
    assert json.loads(say("--json", command="status"))["waiting"] == [
        {"why": "budget", "endpoint": ENDPOINT, "jobs": 1, "kind": None, "next_at": None}
    ]
    assert say(command="status").count("at its budget: ") == say(command="status").count("raises it") == 1


TABLES = {
    "east": {"base_url": "http://127.0.0.1:9/v1", "prices": {"m": {"input": 1, "output": 2}}},
    "west": {"base_url": "http://127.0.0.2:9/v1"},
    "north": {"base_url": "http://127.0.0.3:9/v1", "models": ["other"]},
}


def test_a_missing_price_is_told_with_its_endpoint(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = " ".join(say("5usd").split())
    assert f"the price of m at {ENDPOINT} is not known here" in said
    assert "name it in ANTREAN_PRICES_FILE, or" in said
    ledger = prepare_ledger(load_settings(_env_file=None))
    ledger.run(
        lambda connection: connection.execute(update(budgets).values(waits_since_ms=NOW, wanted_tokens=9))
    )
    for command in ("status", "budget"):
        assert f"the price of m at {ENDPOINT} is not known" in " ".join(say(command=command).split())
    monkeypatch.delenv("ANTREAN_BASE_URL")
    monkeypatch.setenv("ANTREAN_ENDPOINT_TABLES", json.dumps(TABLES))
    said = " ".join(say("6usd").split())
    assert "the price of m at west is not known here" in said
    assert "name it in ANTREAN_PRICES_FILE or in `prices` of that table, or" in said
    settings = load_settings(_env_file=None)
    with pytest.raises(
        InputError, match=r"the price of m at west, other at east, west and north: name it in"
    ):
        check_prices(Limit(nano=1), ["other", "m"], settings)
