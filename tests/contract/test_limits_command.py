"""`antrean limits`, and the line of `status` on them, over a ledger without a broker."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.ledger import ENDPOINT, NOW
from worker.cli.main import app
from worker.clock import SystemClock
from worker.errors import ExitCode, InputError
from worker.settings import load_settings
from worker.storage.engine import Ledger
from worker.storage.limits import LimitKind, keep_found, keep_told
from worker.storage.migrating import prepare_ledger


@pytest.fixture
def ledger(own_folder: Path) -> Ledger:
    return prepare_ledger(load_settings(_env_file=None))


def say(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def say_json(*words: str) -> Any:
    return json.loads(say(*words, "--json"))


def find(ledger: Ledger, value: int, reason: str, *, key_id: str = "", now_ms: int = NOW) -> None:
    ledger.run(
        partial(
            keep_found,
            endpoint=ENDPOINT,
            value=value,
            facts="{}",
            reason=reason,
            worker_id="w1",
            now_ms=now_ms,
            key_id=key_id,
        )
    )


def test_limits_are_set_shown_and_cleared(ledger: Ledger) -> None:
    assert "no limit is set, and none was found" in say("limits")
    said = say("limits", "set", "--in-flight", "60", "--requests-per-minute", "600")
    assert "calls in flight: none to 60, set" in said
    assert "requests a minute: none to 600, set" in said
    said = say("limits")
    assert "60 calls in flight (set) since " in said
    assert "600 requests a minute (set) since " in said
    assert "limits 60 calls in flight (set), 600 requests a minute (set)" in say("status")
    say("limits", "set", "--tokens-per-minute", "1000000")
    facts = say_json("limits", "clear")
    assert {one["kind"]: (one["old"], one["new"]) for one in facts["changed"]} == {
        "in_flight": (60, None),
        "requests_per_min": (600, None),
        "tokens_per_min": (1_000_000, None),
    }
    assert (facts["limits"], facts["in_flight"], facts["workers"]) == ([], None, None)
    assert "limits" not in say("status").split()


def test_found_limits_are_shown_by_key_where_the_endpoint_has_several(ledger: Ledger) -> None:
    day_ms, first, second, gone = 24 * 3_600_000, "0a1b2c3d4e5f", "1a1b2c3d4e5f", "2a1b2c3d4e5f"
    find(ledger, 30, "of before", now_ms=NOW - 1000)
    assert "30 calls in flight (found) since" in " ".join(say("limits").split())
    find(ledger, 9, "refused", key_id=gone, now_ms=NOW - 2 * day_ms)
    find(ledger, 4, "refused", key_id=first)
    find(ledger, 20, "a higher limit is tried", key_id=second, now_ms=NOW - 5000)
    say("limits", "set", "--in-flight", "60")
    said = " ".join(say("limits").split())
    assert re.search(r"60 calls in flight \(set\) since", said)
    assert re.search(rf"4 calls in flight \(found, key {first}\) since \S+: refused", said)
    assert re.search(rf"20 calls in flight \(found, key {second}\) since", said)
    assert "(found)" not in said and gone not in said
    assert f"4 calls in flight (found, key {first}), 20 calls in flight (found, key {second})" in " ".join(
        say("status").split()
    )
    facts = say_json("limits")["limits"]
    assert [(one["source"], one["key_id"], one["value"]) for one in facts] == [
        ("set", None, 60),
        ("found", first, 4),
        ("found", second, 20),
    ]
    assert f"calls in flight of key {first}: none to 4, refused" in " ".join(
        say("limits", "--history").split()
    )
    find(ledger, 16, "start", now_ms=NOW + 1000)
    said = " ".join(say("limits").split())
    assert "16 calls in flight (found) since" in said or "(to begin with)" in said
    assert first not in said, "it has one key again"


def test_a_limit_that_the_endpoint_tells_of_a_key_is_shown_for_a_day(ledger: Ledger) -> None:
    now_ms, hour_ms = SystemClock().now_ms(), 3_600_000
    for key_id, hours in (("0a1b2c3d4e5f", 23), ("ffffffffffff", 25)):
        ledger.run(
            partial(
                keep_told,
                endpoint=ENDPOINT,
                key_id=key_id,
                kind=LimitKind.REQUESTS,
                value=60,
                worker_id="w1",
                now_ms=now_ms - hours * hour_ms,
            )
        )
    say("limits", "set", "--requests-per-minute", "50")
    said = " ".join(say("limits").split())
    assert re.search(
        r"60 requests a minute \(header, key 0a1b2c3d4e5f\) since \S+: told by the endpoint", said
    )
    assert "50 requests a minute (set) since" in said and "ffffffffffff" not in said
    assert "60 requests a minute (header, key 0a1b2c3d4e5f)" in " ".join(say("status").split())
    facts = say_json("limits")["limits"]
    assert [(one["source"], one["key_id"], one["value"]) for one in facts] == [
        ("set", None, 50),
        ("header", "0a1b2c3d4e5f", 60),
    ]
    history = " ".join(say("limits", "--history").split())
    assert "requests a minute of key ffffffffffff: none to 60, told by the endpoint" in history
    say("limits", "clear")
    assert "60 requests a minute (header" in " ".join(say("limits").split()), "it is not ours to clear"


def test_the_found_limit_is_shown_with_its_reason_where_it_is_sought(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(ledger, 16, "start")
    assert "16 calls in flight (to begin with) since" in say("limits")
    find(ledger, 40, "refused")
    assert "40 calls in flight (found) since" in say("limits")
    assert ": refused" in say("limits")
    [fact] = say_json("limits")["limits"]
    assert (fact["endpoint"], fact["value"], fact["source"], fact["reason"]) == (
        ENDPOINT,
        40,
        "found",
        "refused",
    )
    assert say_json("status")["limits"] == [fact]
    monkeypatch.setenv("ANTREAN_CONCURRENCY", "16")
    assert "no limit is set" in say("limits")


def test_the_history_tells_each_change_the_newest_first(ledger: Ledger) -> None:
    assert "no limit was set or found yet" in say("limits", "--history")
    find(ledger, 16, "start")
    find(ledger, 32, "doubled")
    say("limits", "set", "--in-flight", "20")
    lines = say("limits", "--history").splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "calls in flight: none to 20, set",
        "calls in flight: 16 to 32, doubled",
        "calls in flight: none to 16, start",
    ]
    assert [(one["new"], one["worker_id"]) for one in say_json("limits", "--history")["history"]] == [
        (20, None),
        (32, "w1"),
        (16, "w1"),
    ]


def test_what_is_set_already_changes_nothing(ledger: Ledger) -> None:
    say("limits", "set", "--in-flight", "20")
    assert "nothing changed" in say("limits", "set", "--in-flight", "20")
    said = say("limits", "clear")
    assert "calls in flight: 20 to none, cleared" in said
    assert "nothing changed" not in said
    assert "nothing changed" in say("limits", "clear")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("limits", "set"), "name a limit: --in-flight"),
        (("limits", "--in-flight", "5"), "is changed by `antrean limits set`"),
        (("limits", "clear", "--in-flight", "5"), "is changed by `antrean limits set`"),
        (("limits", "set", "--in-flight", "5", "--history"), "limits set: --history only shows"),
        (("limits", "clear", "--history"), "limits clear: --history only shows"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_what_to_type(
    ledger: Ledger, words: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as refused:
        CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert refused.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_limit_is_a_number_from_one_on(ledger: Ledger, value: str) -> None:
    assert CliRunner().invoke(app, ["limits", "set", "--in-flight", value]).exit_code == 2
