"""`[endpoints.NAME]` in `antrean.toml`: what a table means, what wins, and a sentence for each thing that is wrong."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from worker.errors import SettingsError
from worker.prices.book import open_price_book
from worker.settings import Settings, load_settings

TWO = """
[endpoints.east]
base_url = "http://east:8000/v1"
models = ["llama-3.1-8b", "qwen3*"]
weight = 3

[endpoints.west]
base_url = "http://west:8000"
"""


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("ANTREAN_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def load(toml: str = "", **overrides: Any) -> Settings:
    Path("antrean.toml").write_text(toml)
    return load_settings(**overrides)


def problems(toml: str, **overrides: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(toml, **overrides)
    return caught.value.problems


def as_child(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What a child process in another folder reads."""
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_without_tables_the_plain_settings_are_the_one_endpoint() -> None:
    settings = load(base_url="http://h", api_key="k", concurrency=5, auth_style="bearer")
    (one,) = settings.endpoints
    assert (one.name, one.identity, one.base_url) == ("http://h", "http://h", "http://h")
    assert one.api_key is not None and one.api_key.get_secret_value() == "k"
    assert (one.concurrency, one.auth_style, one.weight) == (5, "bearer", 1.0)
    assert one.serves("any")
    assert settings.for_endpoint(one) is settings


def test_a_table_is_an_endpoint_and_is_silent_where_the_plain_settings_speak() -> None:
    settings = load(TWO, concurrency=7, auth_style="api-key")
    east, west = settings.endpoints
    assert (east.name, east.base_url, east.identity) == ("east", "http://east:8000", "http://east:8000")
    assert (east.weight, west.weight, east.concurrency, west.auth_style) == (3.0, 1.0, 7, "api-key")
    assert settings.endpoint == settings.base_url == "http://east:8000"
    assert settings.bulk_slot_count == 14


@pytest.mark.parametrize(
    ("model", "is_served"),
    [
        ("llama-3.1-8b", True),
        ("llama-3.1-8b-x", False),
        ("qwen3", True),
        ("qwen3-32b", True),
        ("qwen2", False),
    ],
)
def test_a_model_is_served_by_its_name_or_by_how_it_begins(model: str, is_served: bool) -> None:
    east, west = load(TWO).endpoints
    assert east.serves(model) is is_served
    assert west.serves(model)


def test_settings_for_one_endpoint_are_those_of_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTREAN_API_KEY", "plain")
    settings = load(
        TWO + 'api_keys = ["a", "b"]\nconcurrency = 9\nprices = {"m*" = {input = 0.1, output = 2}}\n'
    )
    east, west = map(settings.for_endpoint, settings.endpoints)
    assert east.api_key is east.api_keys is None  # a key goes only where a table says
    assert (west.base_url, west.endpoint, west.concurrency) == ("http://west:8000", "http://west:8000", 9)
    assert west.api_keys is not None and west.api_keys.get_secret_value() == "a,b"
    assert west.describe_setting("api_keys") == "api_keys of [endpoints.west]"
    assert west.endpoints == settings.endpoints[1:]
    price = open_price_book(west).find("m1", now_ms=0)
    assert price is not None and (price.rates.input_pico, price.rates.output_pico) == (100_000, 2_000_000)
    assert open_price_book(east).find("m1", now_ms=0) is None


def test_the_name_that_is_set_is_that_of_all_endpoints_together() -> None:
    settings = load(TWO, endpoint_name="pool")
    assert settings.endpoint == "pool"
    assert [one.identity for one in settings.endpoints] == ["http://east:8000", "http://west:8000"]


def test_a_child_reads_the_same_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAST_API_KEY", "from-a-variable")
    settings = load(
        '[endpoints.east]\nbase_url = "http://east"\napi_key_env = "EAST_API_KEY"\nweight = 0.5\nmodels = "m*"\n'
        '[endpoints.west]\nbase_url = "http://west"\napi_key_file = "keys"\nrequests_per_minute = 60\n'
        'identity = "w"\nprices = {m = {input = 0.1, output = 0.3, cached = 0}}\n'
    )
    monkeypatch.delenv("EAST_API_KEY")
    # A keeper's own environment may be that of a run before, with one address.
    monkeypatch.setenv("ANTREAN_BASE_URL", "http://before")
    child = as_child(settings, monkeypatch)
    east, west = settings.endpoints
    assert child.endpoints == (east.model_copy(update={"address_file": None}), west)
    assert child.endpoint == settings.endpoint
    assert west.prices[0].input == Decimal("0.1")
    assert west.api_key_file == Path.cwd().parent / "keys"


def test_a_simulation_goes_to_no_endpoint_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated = load(TWO).for_simulation("http://127.0.0.1:9", "k")
    assert [one.base_url for one in simulated.endpoints] == ["http://127.0.0.1:9"]
    monkeypatch.setenv("ANTREAN_ENDPOINT_TABLES", '{"a": {"base_url": "http://a"}}')
    assert as_child(simulated, monkeypatch).endpoints[0].base_url == "http://127.0.0.1:9"


def test_a_variable_or_a_flag_that_names_one_address_means_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.base_url for one in load(TWO, base_url="http://flag").endpoints] == ["http://flag"]
    Path(".env").write_text("ANTREAN_BASE_URL=http://dotenv\nANTREAN_API_KEY=k\n")
    settings = load(TWO)
    assert [one.base_url for one in settings.endpoints] == ["http://dotenv"]
    assert settings.api_key is not None
    assert settings.unused_tables == (
        "2 endpoints of antrean.toml are not used, because ANTREAN_BASE_URL is set in .env"
    )
    # Tables that are given nearer than the address win, as each setting does.
    monkeypatch.setenv(
        "ANTREAN_ENDPOINT_TABLES", '{"a": {"base_url": "http://a"}, "b": {"base_url": "http://b"}}'
    )
    settings = load(TWO)
    assert [one.name for one in settings.endpoints] == ["a", "b"]
    assert settings.unused_tables is None
    monkeypatch.setenv("ANTREAN_BASE_URL", "http://environment")
    assert [one.base_url for one in load(TWO).endpoints] == ["http://environment"]


def test_a_key_may_come_from_a_variable_of_the_environment_or_of_dotenv(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("MY_API_KEY=dotenv\n")
    table = '[endpoints.a]\nbase_url = "http://a"\napi_key_env = "MY_API_KEY"\n'
    (one,) = load(table).endpoints
    assert one.api_key is not None and one.api_key.get_secret_value() == "dotenv"
    assert one.address_file is None
    monkeypatch.setenv("MY_API_KEY", "environment")
    settings = load(table)
    (one,) = settings.endpoints
    assert one.api_key is not None and one.api_key.get_secret_value() == "environment"
    # A folder may come from anywhere: people are told where their key goes.
    assert settings.for_endpoint(one).address_file == "antrean.toml"
    assert one.describe_setting("api_key") == "MY_API_KEY"


BAD = [
    (
        "endpoints = 3",
        'endpoints must be tables: a table such as [endpoints.east] with base_url = "http://10.0.0.2:8000"',
    ),
    (
        "[endpoints]",
        'endpoints must be tables: a table such as [endpoints.east] with base_url = "http://10.0.0.2:8000"',
    ),
    (
        "[[endpoints]]\na = 1",
        'endpoints must be tables: a table such as [endpoints.east] with base_url = "http://10.0.0.2:8000"',
    ),
    (
        "[endpoints]\na = 1",
        '[endpoints.a] must be a table such as [endpoints.east] with base_url = "http://10.0.0.2:8000"',
    ),
    ("[endpoints.a]\nweight = 1", "[endpoints.a]: base_url is missing"),
    (
        "[endpoints.a]\nbase_url = 'ftp://x'",
        "[endpoints.a]: base_url must be an http:// or https:// address and name a host",
    ),
    (
        '[endpoints."a b"]\nbase_url = "http://a"',
        "the name of a table of endpoints has letters, digits, `_`, `.` and `-`, and at most 60 of them: 'a b' has others",
    ),
]
OF_ONE = [
    (
        "url = 'http://x'",
        "url is unknown; a table has base_url, api_key, api_keys, api_key_file, api_key_command, api_key_env, "
        "auth_style, models, weight, prices, concurrency, max_concurrency, lone_slots, requests_per_minute, "
        "tokens_per_minute, identity",
    ),
    ("weight = 0", "weight must be greater than 0"),
    ("weight = inf", "weight must be a finite number"),
    ("weight = true", "weight must be a number"),
    ("requests_per_minute = 0", "requests_per_minute must be greater than or equal to 1"),
    (
        "tokens_per_minute = 1.5",
        "tokens_per_minute must be a valid integer, got a number with a fractional part",
    ),
    ("concurrency = 0", "concurrency should be auto, or a whole number from 1 to 4000"),
    ("auth_style = 'basic'", "auth_style must be 'bearer', 'api-key' or 'auto'"),
    ("models = [1]", 'models must be a list of names such as ["llama-3.1-8b", "qwen3*"]'),
    ("models = []", "models must have a name: left out, the endpoint gets jobs of all models"),
    ("models = ['a*b']", "models may have a * at the end of a name only"),
    (
        "api_key = 'a b'",
        "api_key must be printable ASCII without spaces (was a quote or a line break pasted with it?)",
    ),
    ("api_keys = []", "api_keys holds no key"),
    ("api_keys = [1]", "api_keys must be a valid string"),
    ("api_key = 'a'\napi_key_file = 'b'", "api_key and api_key_file are given: keep one"),
    ("api_key_env = 'NO_API_KEY'", "api_key_env: the variable NO_API_KEY is not set"),
    ("api_key_env = 'AWS_SECRET'", "api_key_env must name a variable that ends in API_KEY"),
    ("api_key_env = 3", "api_key_env must be the name of a variable"),
    (
        "api_key_command = 'date'",
        "api_key_command may not stand in a file: name the tables in ANTREAN_ENDPOINT_TABLES, as JSON",
    ),
    ("prices = 3", 'prices must be tables such as {"gpt-4o*" = {input = 2.5, output = 10}}'),
    ("prices = {m = {input = 1}}", "prices.m: output is missing"),
    ("identity = ''", "identity must not be empty"),
]


@pytest.mark.parametrize(
    ("toml", "sentence"),
    BAD
    + [(f'[endpoints.a]\nbase_url = "http://a"\n{line}', f"[endpoints.a]: {told}") for line, told in OF_ONE],
)
def test_a_bad_table_gets_a_sentence(toml: str, sentence: str) -> None:
    assert problems(toml) == [f"antrean.toml: {sentence}"]


def test_all_that_is_wrong_is_named_at_once() -> None:
    found = problems(
        'concurrency = 0\nbase_url = "http://x"\napi_key = "k"\n'
        '[endpoints.a]\nweight = -1\n[endpoints.b]\nbase_url = "http://b"\nmodel = "m"\n'
    )
    assert [one.split(";")[0] for one in found] == [
        "antrean.toml: base_url stands beside [endpoints.…]: make a table of it, or take it away",
        "antrean.toml: api_key stands beside [endpoints.…]: write it into the table of the endpoint that it is for",
        "ANTREAN_CONCURRENCY: should be auto, or a whole number from 1 to 4000 (it stands in antrean.toml)",
        "antrean.toml: [endpoints.a]: base_url is missing",
        "antrean.toml: [endpoints.a]: weight must be greater than 0",
        "antrean.toml: [endpoints.b]: model is unknown",
    ]


def test_two_tables_of_one_address_are_one_or_have_identities() -> None:
    one, other = '[endpoints.a]\nbase_url = "http://a"\n', '[endpoints.b]\nbase_url = "http://a/v1"\n'
    assert problems(one + other) == [
        "antrean.toml: [endpoints.a] and [endpoints.b] have one address: make one table of them (several keys are "
        "api_keys), or give one an identity of its own"
    ]
    assert len(load(one + other + 'identity = "b"\n').endpoints) == 2
    elsewhere = '[endpoints.b]\nbase_url = "http://b"\nidentity = "http://a"\n'
    assert problems(one + elsewhere) == [
        "antrean.toml: [endpoints.a] and [endpoints.b] have one identity: give one another (without an entry it is "
        "the address)"
    ]


def test_tables_may_come_as_json_and_may_name_a_command_there(monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.dumps({"a": {"base_url": "http://a", "api_key_command": "./key --now"}})
    monkeypatch.setenv("ANTREAN_ENDPOINT_TABLES", told)
    (one,) = load_settings().endpoints
    assert one.api_key_command is not None
    assert one.api_key_command.get_secret_value() == f"{Path.cwd()}/key --now"
    monkeypatch.setenv("ANTREAN_BASE_URL", "")  # as in the file of a systemd unit
    assert [endpoint.name for endpoint in load_settings().endpoints] == ["a"]
    monkeypatch.delenv("ANTREAN_BASE_URL")
    for bad in ("{", "[]", "3", '"a"', '{"a": {"base_url": "http://a"}, "a": {"base_url": "http://b"}}'):
        monkeypatch.setenv("ANTREAN_ENDPOINT_TABLES", bad)
        assert problems("") == [
            "ANTREAN_ENDPOINT_TABLES: endpoints must be tables as JSON, each name once, such as "
            '{"east": {"base_url": "http://10.0.0.2:8000"}}'
        ]
    monkeypatch.delenv("ANTREAN_ENDPOINT_TABLES")
    Path(".env").write_text(f"ANTREAN_ENDPOINT_TABLES='{told}'\n")
    assert problems("") == [
        ".env: [endpoints.a]: api_key_command may not stand in a file: name the tables in ANTREAN_ENDPOINT_TABLES, "
        "as JSON"
    ]


def test_no_sentence_and_no_repr_tells_a_key() -> None:
    settings = load('[endpoints.a]\nbase_url = "http://a"\napi_key = "sk-secret"\n')
    assert "sk-secret" not in repr(settings) + repr(settings.endpoints) + str(settings)
    found = problems(
        '[endpoints.a]\nbase_url = "http://a"\napi_key = "sk secret"\napi_keys = ["sk secret"]\n'
    )
    assert "sk secret" not in " ".join(found)
