"""`--weight` of `submit` and `run`, `antrean weight`, and where a weight is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from worker.cli.main import app
from worker.errors import ExitCode, InputError, NotFound


@pytest.fixture(autouse=True)
def home(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANTREAN_API_KEY", "k")
    line = {"model": "m", "messages": [{"role": "user", "content": "Say hello"}]}
    (own_folder / "requests.jsonl").write_text(json.dumps(line) + "\n")
    return own_folder


def say(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def say_json(*words: str) -> Any:
    return json.loads(say(*words, "--json"))


def submit(*options: str) -> str:
    return str(say_json("submit", "requests.jsonl", "--no-check", *options)["batch_id"])


def shown(batch: str) -> set[float]:
    """The batch's weight, as each command tells it."""
    [listed] = say_json("batches")["batches"]
    [of_ledger] = say_json("status")["batches"]
    facts = (listed, of_ledger, say_json("status", batch), say_json("weight", batch))
    return {one["weight"] for one in facts}


def test_a_weight_is_shown_where_it_is_not_1() -> None:
    batch = submit()
    assert shown(batch) == {1.0}
    assert "weight 1" not in say("batches") + say("status", batch)
    assert say("weight", batch) == f"{batch}: weight 1\n"
    assert say("weight", batch, "2.5") == f"{batch}: weight 2.5\n"
    assert shown(batch) == {2.5}
    assert ", weight 2.5" in say("batches")
    assert "\nweight 2.5\n" in say("status", batch)


def test_the_same_batch_keeps_its_weight_unless_it_is_submitted_with_another() -> None:
    batch = submit("--weight", "3")
    assert submit() == batch
    assert shown(batch) == {3.0}
    assert submit("--weight", "0.5") == batch
    assert shown(batch) == {0.5}


@pytest.mark.parametrize("weight", ["0", "-2", "heavy", "1000"])
def test_a_bad_weight_is_refused_before_anything_is_queued(weight: str) -> None:
    batch = submit()
    for words in (
        ["submit", "requests.jsonl", "--no-check", "--again", "--weight", weight],
        ["run", "requests.jsonl", "--no-check", "--weight", weight],
        ["weight", batch, "--", weight],
    ):
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, InputError), done.output
        assert str(done.exception) == f"the weight {weight} must be a number from 0.01 to 100"
        assert done.exception.exit_code is ExitCode.USAGE
    assert shown(batch) == {1.0}


def test_a_weight_of_no_batch_is_refused() -> None:
    done = CliRunner().invoke(app, ["weight", "batch_nobody", "2"])
    assert isinstance(done.exception, NotFound)
