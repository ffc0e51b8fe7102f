"""The commands with several endpoints, in this process: each endpoint is asked, shown and changed by its own name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from schemas.failure import FailureKind
from tests.support.endpoints import Open, Route, api
from worker.cli.main import app
from worker.clock import SystemClock
from worker.errors import AntreanError, InputError, NotFound, Refused, Unreachable
from worker.operations.endpoints import Answers, ask_endpoints, not_asked, try_endpoints
from worker.operations.errors import ModelMissing
from worker.operations.gates import GateWatch
from worker.operations.limits import set_limits
from worker.policy.gates import Gate
from worker.settings import load_settings
from worker.storage.limits import LimitKind
from worker.storage.migrating import prepare_ledger
from worker.throttle.redis_store import RedisGateStore

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def told(tmp_path: Path, valkey_path: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A folder whose `antrean.toml` has these tables."""
    for name in list(os.environ):
        if name.startswith("ANTREAN_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTREAN_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("ANTREAN_BROKER_URL", f"redis+socket://{valkey_path}")
    return lambda tables: void(Path("antrean.toml").write_text(tables))


def void(_: object) -> None:
    pass


def table(name: str, url: str, *lines: str) -> str:
    return "\n".join([f"[endpoints.{name}]", f'base_url = "{url}"', *lines, ""])


def say(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def say_json(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def models(*names: str) -> Route:
    return 200, {"data": [{"id": name} for name in names]}


def ask() -> Answers:
    return ask_endpoints(load_settings())


# What they say of models


def test_models_are_those_of_all_endpoints_together(serve: Open, told: Callable[[str], None]) -> None:
    east, west = serve(api("/v1", models=models("m1", "m2"))), serve(api("/v1", models=models("m3")))
    told(table("east", east.url, 'models = ["m1"]') + table("west", west.url))
    answers = ask()
    assert answers.models.check_models(["m1", "m3"]) == [
        "west: the endpoint's list has no m1 (it has m3): going on, because it may accept names that it does not list"
    ]
    assert answers.models.only_model is None
    with pytest.raises(
        ModelMissing, match=r"do not serve just one model \(m1, m3\): name one with ANTREAN_MODEL"
    ):
        answers.models.choose_model(None)
    assert say_json("models") == {"models": ["m1", "m3"], "endpoints": {"east": ["m1"], "west": ["m3"]}}
    assert "m1 (east)" in say("models")
    assert east.paid() == west.paid() == 0


def test_one_model_of_all_need_not_be_named(serve: Open, told: Callable[[str], None]) -> None:
    told(table("a", serve(api("/v1")).url) + table("b", serve(api("/v1")).url))
    assert ask().models.choose_model(None) == "m1"


def test_a_model_that_no_table_has_is_refused_with_what_is_served_also_unasked(
    told: Callable[[str], None],
) -> None:
    told(
        table("east", NOWHERE, 'models = ["m1", "q*"]') + table("west", "http://127.0.0.1:7", 'models = "m2"')
    )
    unasked = not_asked(load_settings()).models
    assert unasked.check_models(["q7", "m2"]) == []
    with pytest.raises(Refused, match=r"^no endpoint serves m9: east serves m1, q\*; west serves m2$"):
        unasked.check_models(["m1", "m9"])
    Path("r.jsonl").write_text('{"model": "m9", "messages": [{"role": "user", "content": "Hello"}]}\n')
    with pytest.raises(Refused, match="no endpoint serves m9"):
        say("submit", "r.jsonl", "--no-check")


def test_an_endpoint_that_does_not_run_what_it_may_get_is_told_by_name(
    serve: Open, told: Callable[[str], None]
) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        return 404, {"error": {"message": f"The model `{body.get('model')}` does not exist"}}

    west = serve(api("/v1", models=models("m3"), answer=answer))
    told(table("east", serve(api("/v1")).url) + table("west", west.url))
    with pytest.raises(
        Refused, match=r"^west: the endpoint does not run m1 .*; name in `models` of \[endpoints.west\]"
    ):
        ask().models.check_models(["m1"])


def test_one_that_does_not_answer_is_passed_by_while_another_serves_the_model(
    serve: Open, told: Callable[[str], None]
) -> None:
    told(table("east", serve(api("/v1")).url, 'models = ["m1"]') + table("west", NOWHERE))
    answers = ask()
    assert answers.is_up and list(answers.accepted) == ["east"]
    [said] = answers.describe_passed_by()
    assert said.startswith(f"west is passed by until it answers: {NOWHERE} does not answer as it should")
    assert said.endswith("check base_url of [endpoints.west]")
    assert answers.models.check_models(["m1"]) == []
    with pytest.raises(Unreachable, match=NOWHERE):
        answers.models.check_models(["m2"])


def test_where_none_answers_the_first_is_told(told: Callable[[str], None]) -> None:
    told(table("east", NOWHERE) + table("west", "http://127.0.0.1:7"))
    with pytest.raises(Unreachable, match=NOWHERE):
        ask()
    assert len(try_endpoints(load_settings()).asked) == 2


def test_a_refused_key_is_told_by_its_entry(serve: Open, told: Callable[[str], None]) -> None:
    no: Route = (401, {"error": {"message": "no"}})
    one = serve(api("/v1", models=no, answer=lambda _: (401, {"error": {"message": "no"}})))
    told(table("east", one.url, 'api_key = "k"') + table("west", serve(api("/v1")).url))
    [asked, _] = ask().asked
    assert str(asked.problem) == (
        f"{one.url} answers 401, it refuses the key: check api_key of [endpoints.east] (header style auto; see "
        "auth_style of [endpoints.east])"
    )


def test_jobs_that_no_table_serves_any_more_are_told_by_status_and_by_the_doctor(
    told: Callable[[str], None],
) -> None:
    told(table("east", NOWHERE))
    lines = [
        {"model": model, "messages": [{"role": "user", "content": "Hi"}]} for model in ("m1", "m1", "m2")
    ]
    text = "".join(json.dumps({**line, "seed": n}) + "\n" for n, line in enumerate(lines))
    Path("r.jsonl").write_text(text)
    batch = say_json("submit", "r.jsonl", "--no-check")["batch_id"]
    assert "no_endpoint" not in [one["why"] for one in say_json("status")["waiting"]]
    told(table("east", NOWHERE, 'models = ["m2"]'))
    for command in (["status"], ["status", batch]):
        assert [(one["why"], one["jobs"]) for one in say_json(*command)["waiting"]] == [
            ("no_endpoint", 2),
            ("no_worker", 1),
        ]
        assert "2 jobs for an endpoint that serves m1: no table has it in its `models`" in " ".join(
            say(*command).split()
        )
    found = {one["name"]: one for one in say_json("doctor", code=1)["findings"]}
    assert (found["unserved_model"]["count"], found["unserved_model"]["examples"]) == (2, ["m1"])


# check


def test_check_says_where_requests_go_and_looks_at_each(serve: Open, told: Callable[[str], None]) -> None:
    east, west = serve(api("/v1")), serve(api("/v1"))
    told(table("east", east.url, 'models = ["m1", "z*"]') + table("west", west.url))
    said = say("check")
    assert said.splitlines()[0] == (
        f"requests go to 2 endpoints: east ({east.url}/v1/chat/completions, for m1, z*), "
        f"west ({west.url}/v1/chat/completions)"
    )
    flat = " ".join(said.split())
    assert f"ok endpoint east: {east.url} runs m1; {east.url}/v1/chat/completions answers a request" in flat
    assert "its list has no model for z*" in flat
    assert f"ok endpoint west: {west.url} runs m1" in flat
    assert "ok model: m1" in flat


def test_check_fails_for_the_one_that_is_away_and_says_the_rest(
    serve: Open, told: Callable[[str], None]
) -> None:
    told(table("east", NOWHERE) + table("west", serve(api("/v1", models=models("m1", "m2"))).url))
    found = say_json("check", code=4)
    by_name = {one["name"]: one for one in found["checks"]}
    assert (by_name["endpoint east"]["ok"], by_name["endpoint west"]["ok"]) == (False, True)
    assert by_name["model"]["detail"] == "each request names its own, as no default is set (ANTREAN_MODEL)"
    assert [one["name"] for one in found["endpoints"]] == ["east", "west"]


def test_an_address_that_wins_over_the_tables_is_told_with_what_it_wins_over(
    serve: Open, told: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    told(table("east", NOWHERE))
    monkeypatch.setenv("ANTREAN_BASE_URL", serve(api("/v1")).url)
    first = say("check").splitlines()[0]
    assert first.endswith("; 1 endpoint of antrean.toml is not used, because ANTREAN_BASE_URL is set")


# Limits and gates


TWO = table("east", NOWHERE, "requests_per_minute = 600", "tokens_per_minute = 5000") + table(
    "west", "http://h"
)


def test_limits_are_those_of_each_endpoint_and_a_set_one_wins_over_its_table(
    told: Callable[[str], None],
) -> None:
    told(TWO)
    assert say("limits").splitlines() == [
        "east: 600 requests a minute (table)",
        "east: 5,000 tokens a minute (table)",
        "west: no limit is set, and none was found",
    ]
    with pytest.raises(InputError, match="limits set: name one of the endpoints with --endpoint: east, west"):
        say("limits", "set", "--in-flight", "6")
    with pytest.raises(NotFound, match="no endpoint is named so: there is east, west"):
        say("limits", "--endpoint", "north")
    assert "requests a minute: none to 60, set" in say(
        "limits", "set", "--requests-per-minute", "60", "--endpoint", "east"
    )
    shown = say_json("limits")["endpoints"]
    assert [
        (one["endpoint"], [(kind["value"], kind["source"]) for kind in one["limits"]]) for one in shown
    ] == [
        (NOWHERE, [(60, "set"), (5000, "table")]),
        ("http://h", []),
    ]
    assert "east: requests a minute: none to 60, set" in say("limits", "--history")
    assert "limits of east: 60 requests a minute (set), 5,000 tokens a minute (table)" in say("status")
    assert say_json("limits", "clear", "--endpoint", "east")["changed"][0]["new"] is None


def test_another_pool_with_the_same_endpoint_has_its_limits(told: Callable[[str], None]) -> None:
    told(TWO)
    set_limits(prepare_ledger(load_settings()), "http://h", {LimitKind.IN_FLIGHT: 7})
    told(table("first", "http://elsewhere") + table("second", "http://h/v1"))
    assert "second: 7 calls in flight (set)" in say("limits")


def shut() -> Gate:
    now_ms = SystemClock().now_ms()
    return Gate(
        FailureKind.SERVER_ERROR,
        now_ms + 45_000,
        3,
        needs_probe=True,
        wait_ms=45_000,
        struck_ms=now_ms,
        http_status=503,
        since_ms=now_ms,
    )


def test_a_gate_is_that_of_one_endpoint_and_is_shown_and_opened_by_its_name(
    told: Callable[[str], None], valkey: redis.Redis
) -> None:
    told(TWO)
    east, west = RedisGateStore(valkey, NOWHERE), RedisGateStore(valkey, "http://h")
    east.put(shut())
    lines = say("gate").splitlines()
    assert lines[0].startswith("east: server_error (HTTP 503)") and lines[-1] == "west: the gate is open"
    # One that takes calls is left: nothing keeps all jobs waiting.
    status = say_json("status")
    assert status["gate"] is None and status["waiting_for"] is None
    assert [one["gate"] and one["gate"]["kind"] for one in status["endpoints"]] == ["server_error", None]
    assert "gate of east: server_error (HTTP 503)" in say("status")
    west.put(shut())
    assert say_json("status")["gate"]["kind"] == "server_error"
    assert "it is open now" in say("gate", "open", "--endpoint", "east")
    assert east.fetch() is None and west.fetch() is not None
    east.put(shut())
    assert "all of them are open now" in say("gate", "open")
    assert east.fetch() is west.fetch() is None


def test_the_gate_of_a_run_is_that_of_the_endpoints_which_serve_its_models(
    told: Callable[[str], None], valkey: redis.Redis
) -> None:
    told(
        table("a", NOWHERE, 'models = ["m", "n"]')
        + table("b", "http://b", 'models = ["m"]')
        + table("c", "http://c", 'models = ["k"]')
    )
    settings = load_settings()
    RedisGateStore(valkey, NOWHERE).put(shut())

    def watch(*of: str) -> tuple[bool, bool]:
        """Whether all jobs of these models wait, and those of one of them."""
        one = GateWatch(settings, valkey, models=of)
        return one.fetch_cached() is not None, one.is_a_model_shut()

    assert watch("n") == (True, True)
    assert watch("m") == watch("k") == watch() == watch("of no table") == (False, False)
    assert watch("m", "n") == (False, True)
    RedisGateStore(valkey, "http://b").put(shut())
    assert watch("m", "n") == (True, True)
    assert watch() == (False, False)


def test_check_brings_forward_the_gate_of_the_endpoint_that_answers_alone(
    serve: Open, told: Callable[[str], None], valkey: redis.Redis
) -> None:
    one = serve(api("/v1"))
    told(table("east", one.url) + table("west", NOWHERE))
    stores = RedisGateStore(valkey, one.url), RedisGateStore(valkey, NOWHERE)
    for store in stores:
        store.put(shut())
    said = " ".join(say("check", code=4).split())
    assert "gate of east: server_error (HTTP 503)" in said
    assert said.count("the endpoint answers, so it is tried again now") == 1
    east, west = (store.fetch() for store in stores)
    assert east is not None and west is not None
    assert east.until_ms + 20_000 < west.until_ms


def test_a_problem_of_a_table_ends_a_command_with_a_sentence(told: Callable[[str], None]) -> None:
    told("[endpoints.east]\nweight = 0\n")
    with pytest.raises(AntreanError, match=r"antrean.toml: \[endpoints.east\]: base_url is missing"):
        say("limits")
    assert "antrean.toml: [endpoints.east]: weight must be greater than 0" in " ".join(
        say("check", code=3).split()
    )
