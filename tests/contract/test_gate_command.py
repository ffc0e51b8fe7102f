"""`antrean gate`, and the lines of `status` and `check` on keys, over a ledger and a real Valkey."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from schemas.chat import parse_request
from schemas.failure import FailureKind
from tests.support.ledger import ENDPOINT, claim, job_row, put, record, setback
from worker.cli.main import app
from worker.clock import SystemClock
from worker.errors import BrokerAway
from worker.intake.submit import make_job
from worker.operations.gates import GateWatch
from worker.policy.gates import Gate
from worker.settings import load_settings
from worker.storage.engine import Ledger
from worker.storage.migrating import prepare_ledger
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.redis_store import RedisGateStore
from worker.throttle.store import KeyName

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
FIRST, SECOND = KeyName("0a1b2c3d4e5f", "key 1 of a file"), KeyName("ffffffffffff", "key 2 of a file")


@pytest.fixture
def ledger(own_folder: Path, valkey_path: str, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setenv("ANTREAN_BROKER_URL", f"redis+socket://{valkey_path}")
    return prepare_ledger(load_settings(_env_file=None))


@pytest.fixture
def store(valkey: redis.Redis) -> RedisGateStore:
    return RedisGateStore(valkey, ENDPOINT)


def spent() -> Gate:
    """That of a key whose account is empty, for 45 s."""
    now_ms = SystemClock().now_ms()
    return Gate(
        FailureKind.QUOTA,
        now_ms + 45_000,
        3,
        needs_probe=True,
        wait_ms=45_000,
        struck_ms=now_ms - 2000,
        http_status=402,
        since_ms=now_ms - 90_000,
    )


def waiting_job(ledger: Ledger) -> str:
    """A job that waits at a gate for 45 s."""
    now_ms = SystemClock().now_ms()
    id_ = put(ledger, make_job(parse_request(REQUEST), endpoint=ENDPOINT))[0].id
    job = claim(ledger, id_, endpoint=ENDPOINT, now_ms=now_ms)[id_]
    record(
        ledger,
        setback(job, kind=FailureKind.QUOTA, not_before_ms=now_ms + 45_000, burns=False, is_blocked=True),
    )
    return id_


def say(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def say_json(*words: str) -> Any:
    return json.loads(say(*words, "--json"))


def test_a_key_that_is_set_aside_is_told_and_used_again_by_hand(
    ledger: Ledger, store: RedisGateStore
) -> None:
    store.note_used([FIRST, SECOND])
    store.of_key(SECOND).put(spent())
    aside = (
        r"key ffffffffffff \(key 2 of a file\) is set aside: "
        r"quota \(HTTP 402\) since \d\d:\d\d:\d\d, tried again (at|in) "
    )
    told = " ".join(say("gate").split())
    assert told.startswith("the gate is open key ")
    assert re.search(aside, told), told
    assert re.search(aside.removeprefix("key "), " ".join(say("status").split()))
    first, second = say_json("gate")["keys"]
    assert (first["id"], first["set_aside"]) == (FIRST.id, None)
    assert (second["id"], second["set_aside"]["kind"], second["set_aside"]["http_status"]) == (
        SECOND.id,
        "quota",
        402,
    )
    assert second["set_aside"]["since"] < second["set_aside"]["until"]
    first, second = say_json("status")["keys"]
    assert (first["set_aside"], second["id"], second["set_aside"]["kind"]) == (None, SECOND.id, "quota")
    opened = " ".join(say("gate", "open").split())
    assert "the keys are used again now" in opened
    assert [one.gate for one in store.fetch_keys()] == [None, None]


def test_a_half_open_gate_is_told_and_opened_wholly_by_hand(ledger: Ledger, store: RedisGateStore) -> None:
    store.put(replace(spent(), kind=FailureKind.SERVER_ERROR, until_ms=SystemClock().now_ms(), answered=1))
    told = " ".join(say("gate").split())
    assert told.endswith("it has answered again, and a few calls go before all do"), told
    assert say_json("gate")["gate"]["is_half_open"] is True
    say("gate", "open")
    assert store.fetch() is None


def test_where_all_keys_are_set_aside_their_gate_is_told_and_opening_it_wakes_the_jobs(
    ledger: Ledger, store: RedisGateStore
) -> None:
    store.note_used([FIRST])
    store.of_key(FIRST).put(spent())
    id_ = waiting_job(ledger)
    facts = say_json("gate")
    assert (facts["gate"]["kind"], facts["opened"], facts["woken"]) == ("quota", False, 0)
    facts = say_json("gate", "open")
    assert (facts["gate"]["kind"], facts["opened"], facts["woken"]) == ("quota", True, 1)
    assert store.of_key(FIRST).fetch() is None
    assert job_row(ledger, id_).not_before_ms <= SystemClock().now_ms() + 1000


@pytest.mark.parametrize("answered", [0, 1])
def test_an_answer_that_run_or_check_had_makes_all_waiting_jobs_due_and_the_next_probe_too(
    ledger: Ledger, store: RedisGateStore, answered: int
) -> None:
    ids = [waiting_job(ledger) for _ in range(12)]
    keeper = Gatekeeper(store, SystemClock(), probe_ttl_s=60.0)
    store.put(replace(spent(), kind=FailureKind.SERVER_ERROR, http_status=503, answered=answered))
    assert not keeper.admit("job").is_granted
    before_ms = SystemClock().now_ms()
    settings = load_settings(_env_file=None)
    assert GateWatch(settings).wake(ledger, {settings.endpoint: []}) == len(ids)
    due_ms = [job_row(ledger, id_).not_before_ms for id_ in ids]
    assert before_ms <= min(due_ms) and max(due_ms) <= SystemClock().now_ms() + 1000, "45 s before their time"
    again = Gatekeeper(store, SystemClock(), probe_ttl_s=60.0)
    assert again.room(64) == (3 if answered else 1), "an answer of one path proves nothing of another"
    assert again.admit("job").is_probe


def test_the_gate_of_a_key_that_no_worker_uses_any_more_is_opened_as_well(
    ledger: Ledger, store: RedisGateStore
) -> None:
    store.of_key(FIRST).put(spent())
    assert say_json("gate")["keys"] == []
    say("gate", "open")
    assert store.of_key(FIRST).fetch() is None


@pytest.mark.parametrize("words", [["gate"], ["gate", "open"]])
def test_no_gate_is_said_to_be_open_where_the_broker_does_not_answer(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("ANTREAN_BROKER_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(BrokerAway, match="does not answer"):
        say(*words)


def test_no_gate_is_said_to_be_opened_where_the_broker_takes_no_change(
    ledger: Ledger, store: RedisGateStore, valkey: redis.Redis
) -> None:
    store.put(spent())
    valkey.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(BrokerAway, match="shut as before"):
            say("gate", "open")
    finally:
        valkey.execute_command("REPLICAOF", "NO", "ONE")
    assert "it is open now" in say("gate", "open")
