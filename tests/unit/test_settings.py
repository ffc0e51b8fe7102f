"""Settings: typed, checked together, every problem named at once, secrets kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from worker.attempt.credentials import Credentials
from worker.errors import SettingsError
from worker.settings import Settings, load_settings
from worker.settings.database import PostgresqlAddress
from worker.settings.sources import unknown_names
from worker.storage.postgresql import engine_url


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("ANTREAN_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def postgresql_of(settings: Settings) -> PostgresqlAddress:
    assert isinstance(settings.ledger_address, PostgresqlAddress)
    return settings.ledger_address


def problems(**overrides: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    return caught.value.problems


def test_without_being_told_anything_it_works_at_home() -> None:
    settings = load_settings()
    assert settings.ledger_address == Path.cwd() / ".antrean" / "antrean.db"
    assert settings.is_broker_embedded
    assert settings.endpoint == settings.base_url


def test_the_environment_wins_over_dotenv_which_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("antrean.toml").write_text('model = "toml"\nconcurrency = 3\nmax_attempts = 4\n')
    Path(".env").write_text("ANTREAN_MODEL=dotenv\nANTREAN_CONCURRENCY=5\n")
    monkeypatch.setenv("ANTREAN_MODEL", "environment")
    settings = load_settings()
    assert (settings.model, settings.concurrency, settings.max_attempts) == ("environment", 5, 4)


def test_every_problem_is_named_at_once_by_its_variable() -> None:
    found = problems(
        concurrency=0, base_url="ftp://x", lease_s=-1, broker_url="amqp://x", database_url="mysql://x"
    )
    assert sorted(problem.split(":")[0] for problem in found) == [
        "ANTREAN_BASE_URL",
        "ANTREAN_BROKER_URL",
        "ANTREAN_CONCURRENCY",
        "ANTREAN_DATABASE_URL",
        "ANTREAN_LEASE_S",
    ]


def test_a_sentinels_address_is_refused_with_what_to_give_instead() -> None:
    (problem,) = problems(broker_url="sentinel://h1:26379;sentinel://h2:26379/0")
    assert problem.startswith("ANTREAN_BROKER_URL: ")
    assert "name the server" in problem


def test_a_file_that_cannot_be_read_is_a_problem_with_a_sentence() -> None:
    Path("antrean.toml").write_text("this is = = not toml")
    assert "antrean.toml" in problems()[0]


def test_secrets_are_in_no_text(tmp_path: Path) -> None:
    settings = load_settings(
        api_key="sk-secret", database_url="postgresql://u:pw-secret@h/d", broker_url="redis://:br-secret@h"
    )
    text = f"{settings!r} {settings}"
    assert not any(secret in text for secret in ("sk-secret", "pw-secret", "br-secret"))
    several = load_settings(api_keys="sk-secret,sk-secret-2")
    command = load_settings(api_key_command="get --token sk-secret")
    credentials = Credentials(several, "ledger")
    told = f"{several!r} {command!r} {credentials.fetch()!r} {credentials.names()!r} {credentials._keys!r}"
    assert "sk-secret" not in told
    assert "sk-bad" not in str(problems(api_keys="sk-good,sk-bad key"))
    assert "sk-bad key" not in str(problems(api_key="sk-bad key"))
    assert "pw" not in str(problems(base_url="https://u:pw@h"))


def test_postgresql_is_spoken_through_psycopg_whatever_it_was_called() -> None:
    for url in ("postgresql://u:p%40@h/d", "postgresql+psycopg2://u:p%40@h/d"):
        found = engine_url(postgresql_of(load_settings(database_url=url)))
        assert found.render_as_string(hide_password=False) == "postgresql+psycopg://u:p%40@h/d"


@pytest.mark.parametrize(
    "name",
    [
        "a%41b",
        "a?b",
        "a?b=c",
        "a#b",
        "a b",
        " a ",
        ":memory:",
        "file:a?mode=memory&uri=true",
        "é",
        "'\"",
        "a\nb",
        "~nosuchperson",
        "\udce9",
    ],
)
def test_a_path_is_the_file_of_that_name_and_no_other(name: str) -> None:
    """Whatever its characters mean in an address, and however often the settings are handed on."""
    home = load_settings(home=name)
    assert str(home.ledger_address) == str(Path.cwd() / name / "antrean.db")
    ledger = load_settings(database_url=f"sqlite:///./{name}")
    assert str(ledger.ledger_address) == str(Path.cwd() / name)
    child = load_settings(database_url=ledger.as_environment()["ANTREAN_DATABASE_URL"])
    assert str(child.ledger_address) == str(Path.cwd() / name)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://user:pw@/a.db",
        "sqlite:a.db",
        "sqlite:///a\0b",
    ],
)
def test_an_address_of_no_sqlite_file_is_a_sentence(url: str) -> None:
    (problem,) = problems(database_url=url)
    assert problem.startswith("ANTREAN_DATABASE_URL: ")
    assert "pw" not in problem


def test_a_path_that_the_system_cannot_have_is_a_sentence() -> None:
    Path("antrean.toml").write_text('home = "a\\u0000b"\napi_key_file = "a\\u0000b"\n')
    assert problems() == [
        f"ANTREAN_{name}: must not hold U+0000 (it stands in antrean.toml)"
        for name in ("API_KEY_FILE", "HOME")
    ]


@pytest.mark.parametrize("url", ["https://h/v1", "https://h/v1/", "https://h"])
def test_a_base_url_means_the_same_with_and_without_v1(url: str) -> None:
    assert load_settings(base_url=url).base_url == "https://h"


def test_zero_is_a_value() -> None:
    settings = load_settings(lone_slots=0, grace_s=0, gate_patience_s=0, group_window_s=0)
    assert (settings.lone_slot_count, settings.grace_s, settings.gate_patience_s) == (0, 0, 0)
    assert load_settings(concurrency=64).lone_slot_count == 4
    assert load_settings(concurrency=64).thread_count == 64 + 4 + 16


@pytest.mark.parametrize("said", ["auto", " Auto ", None])
def test_the_number_of_calls_in_flight_is_found_unless_a_number_is_set(
    said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is not None:
        monkeypatch.setenv("ANTREAN_CONCURRENCY", said)
    settings = load_settings()
    assert (settings.concurrency, settings.is_adaptive, settings.first_slots) == ("auto", True, (15, 1))
    assert (settings.bulk_slot_count, settings.lone_slot_count, settings.call_count) == (240, 16, 256)
    assert settings.reserved_count == 256 + 128
    assert settings.thread_count == 256 + 60
    monkeypatch.setenv("ANTREAN_CONCURRENCY", settings.as_environment()["ANTREAN_CONCURRENCY"])
    assert load_settings() == settings


def test_a_number_fixes_the_slots_of_each_worker_whatever_the_most_of_auto_is() -> None:
    settings = load_settings(concurrency="300")
    assert (settings.concurrency, settings.is_adaptive, settings.first_slots) == (300, False, (300, 18))
    assert (settings.call_count, settings.reserved_count, settings.thread_count) == (318, 446, 382)


@pytest.mark.parametrize("said", ["many", "0", "4001", "-1", "3.5", 3.5, True, "", "9" * 30, "²"])
def test_a_concurrency_that_is_no_number_of_slots_is_one_problem_that_says_what_it_may_be(
    said: object,
) -> None:
    assert problems(concurrency=said) == [
        "ANTREAN_CONCURRENCY: should be auto, or a whole number from 1 to 4000"
    ]


@pytest.mark.parametrize(
    ("limit", "lone_slots", "split"),
    [
        (0, None, (0, 0)),
        (1, None, (1, 0)),
        (15, None, (15, 0)),
        (16, None, (15, 1)),
        (100, None, (94, 6)),
        (40, 0, (40, 0)),
        (40, 10, (30, 10)),
        (1, 10, (1, 0)),
        (0, 10, (0, 0)),
    ],
)
def test_lone_jobs_have_a_part_of_the_limit_and_bulk_jobs_keep_one_slot(
    limit: int, lone_slots: int | None, split: tuple[int, int]
) -> None:
    assert load_settings(lone_slots=lone_slots).split_slots(limit) == split


@pytest.mark.parametrize(
    "together",
    [
        {"lease_s": 2.0, "beat_s": 1.1},
        {"backoff_base_s": 10.0, "backoff_cap_s": 5.0},
        {"api_key": "a", "api_key_file": "b"},
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(together: dict[str, Any]) -> None:
    assert len(problems(**together)) == 1


def test_times_follow_from_each_other() -> None:
    settings = load_settings(lease_s=6.0, read_timeout_s=10.0)
    assert (settings.beat_interval_s, settings.deadline_s) == (1.0, 70.0)
    assert load_settings(total_timeout_s=5.0).deadline_s == 5.0


def test_a_name_that_is_no_setting_is_noticed() -> None:
    environ = {"ANTREAN_MODEL": "", "ANTREAN_MODLE": "", "OTHER": "", "ANTREAN_IN_STACK": "1"}
    assert unknown_names(environ, Settings.model_fields) == ["ANTREAN_MODLE"]


def test_settings_travel_to_a_child_through_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(api_key="sk-x", concurrency=7, lone_slots=0, home="/tmp/h", model="m")
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_a_simulation_lives_in_a_house_of_its_own() -> None:
    real = load_settings(api_key="sk-real", database_url="postgresql://h/d", broker_url="redis://h")
    told: Settings = real.for_simulation("http://127.0.0.1:1", "sk-sim")
    assert told.home == real.home / "simulation"
    assert told.ledger_address == told.home / "antrean.db"
    assert (told.is_broker_embedded, told.endpoint) == (True, "simulation")
    assert "sk-real" not in str(told.as_environment())


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("h/db?pgbouncer=true", "pgbouncer is no parameter"),
        ("h/db?schema=public", "schema is no parameter"),
        ("h/db?connection_limit=5&sslmode=require", "connection_limit is no parameter"),
        ("h/db?prepare_threshold=0", "prepare_threshold is no parameter"),
        ("h/db?%1B%5B31m=1", "what stands behind `?` is no parameter"),
        ("h/db?connect_timeout=soon", "connect_timeout must be a whole number"),
        ("h/db?options=a&options=b", "options is given twice"),
        ("h/db?client_encoding=latin1", "client_encoding must be utf8"),
        ("h:99999/db", "port must be"),
        ("h:abc/db", "is not a database address"),
        ("[::1/db", "is not a database address"),
        ("h/d%00b", "U+0000"),
        ("/db?port=x", "hosts and ports"),
    ],
)
def test_a_database_address_with_what_no_postgresql_takes_is_told_before_anybody_connects(
    said: str, words: str
) -> None:
    (problem,) = problems(database_url=f"postgresql://{said}")
    assert problem.startswith("ANTREAN_DATABASE_URL: ")
    assert words in problem


def test_an_address_keeps_the_parameters_that_postgresql_has() -> None:
    said = "sslmode=require&options=-c work_mem=9MB&application_name=mine&connect_timeout=3"
    url = str(engine_url(postgresql_of(load_settings(database_url=f"postgresql://u@h/db?{said}"))))
    assert url.startswith("postgresql+psycopg://u@h/db?")
    assert "application_name=mine" in url
