"""Paths and addresses among the settings: absolute wherever they stand, and refused with a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.broker.client import open_client
from worker.errors import SettingsError
from worker.settings import load_settings
from worker.settings.database import PostgresqlAddress
from worker.settings.values import check_broker_url, check_home


def problems(**overrides: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides, _env_file=None)
    assert not any("secret" in one for one in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://h",
        "redis://u:p%2F@h:6379/3",
        "redis://[::1]:6379?db=1",
        "rediss://h:1/0?ssl_cert_reqs=required",
        "redis+socket:///run/valkey.sock",
        "redis+socket:///run/valkey.sock?virtual_host=0",
        "redis+socket://u:p@/run/valkey.sock?virtual_host=/2",
    ],
)
def test_a_brokers_address_is_kept_as_it_is(url: str) -> None:
    assert check_broker_url(url) == url
    open_client(url).close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://:secret@h:99999", "port"),
        ("redis://:secret@h:port", "port"),
        ("redis://:secret@[::1", "host"),
        ("redis://:secret@h/db", "database"),
        ("redis://:secret@h/-1", "database"),
        ("redis+socket:///run/v.sock?virtual_host=secret", "database"),
        ("redis+socket://run/v.sock", "three slashes"),
        ("redis+socket://", "three slashes"),
        ("redis://:sec ret@h", "spaces"),
        ("amqp://:secret@h", "redis://"),
    ],
)
def test_a_brokers_address_that_names_nothing_is_a_sentence(url: str, words: str) -> None:
    (problem,) = problems(broker_url=url)
    assert problem.startswith("ANTREAN_BROKER_URL: ")
    assert words in problem


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("foo=secret", "knows: foo"),
        ("socket_timeout=secret", "wrong value"),
        ("protocol=7", "wrong value"),
        ("ssl_cert_reqs=secret", "wrong value"),
    ],
)
def test_an_option_that_the_brokers_client_refuses_is_a_problem_of_the_settings(
    option: str, words: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        open_client(f"rediss://:secret@127.0.0.1:1/0?{option}")
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_files_that_an_address_names_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of `antrean run` has a folder of its own."""
    monkeypatch.chdir(tmp_path)
    settings = load_settings(
        broker_url="rediss://h/0?ssl_ca_certs=ca.pem&ssl_cert_reqs=required",
        database_url="postgresql://h/d?sslrootcert=ca.pem&sslmode=verify-full&sslcert=/etc/c.pem",
        _env_file=None,
    )
    assert settings.broker_url is not None
    assert f"ssl_ca_certs={tmp_path}/ca.pem" in settings.broker_url.get_secret_value().replace("%2F", "/")
    address = settings.ledger_address
    assert isinstance(address, PostgresqlAddress)
    assert address.parameters == {
        "sslrootcert": f"{tmp_path}/ca.pem",
        "sslcert": "/etc/c.pem",
        "sslmode": "verify-full",
    }
    system = load_settings(database_url="postgresql://h/d?sslrootcert=system").ledger_address
    assert isinstance(system, PostgresqlAddress)
    assert system.parameters["sslrootcert"] == "system"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"home": "a\0b"}, "ANTREAN_HOME"),
        ({"model": "m\udcff"}, "ANTREAN_MODEL"),
        ({"broker_url": "redis://a..b:6/0"}, "ANTREAN_BROKER_URL"),
        ({"database_url": "postgresql://u@a..b/x"}, "ANTREAN_DATABASE_URL"),
        ({"base_url": "http://h/v1\udcff"}, "ANTREAN_BASE_URL"),
        ({"broker_url": "redis://h", "broker_password_file": "no\udcff"}, "ANTREAN_BROKER_URL"),
        ({"read_timeout_s": 1e9}, "ANTREAN_READ_TIMEOUT_S"),
        ({"lease_s": 1e300}, "ANTREAN_LEASE_S"),
        ({"max_attempts": 10**30}, "ANTREAN_MAX_ATTEMPTS"),
        ({"database_url": "postgresql://h:port/d"}, "ANTREAN_DATABASE_URL"),
        ({"database_url": "sqlite:///"}, "ANTREAN_DATABASE_URL"),
        ({"database_url": "sqlite://h/x"}, "ANTREAN_DATABASE_URL"),
    ],
    ids=ascii,
)
def test_a_value_that_nothing_could_use_is_a_problem_of_the_settings(
    given: dict[str, object], name: str
) -> None:
    (problem,) = problems(**given)
    assert problem.startswith(f"{name}: ")
    problem.encode()


def test_a_current_folder_that_is_gone_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTREAN_HOME", raising=False)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert problems() == [
        "ANTREAN_HOME: is relative to the current folder, which is gone: change to one that exists"
    ]
    os.chdir(tmp_path)


@pytest.mark.parametrize(
    "name", ["/", "//", "/.", "/tmp/..", "/etc", "/etc/", "/usr/local", "/var/lib", "/tmp", "/home"]
)
def test_a_folder_of_the_system_is_no_home(name: str) -> None:
    """Antrean keeps `run`, `logs` and `valkey` in its home: of `/` they are the machine's. Only asked, never tried."""
    with pytest.raises(ValueError, match="is a folder of the system: choose one of your own"):
        check_home(Path(name))


def test_a_link_to_a_folder_of_the_system_is_no_home_and_one_within_is(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/var/lib")
    with pytest.raises(ValueError, match="link is a folder of the system"):
        check_home(tmp_path / "link")
    for name in ("/var/lib/antrean", "/etc/antrean", "/srv", "/root", str(tmp_path)):
        assert check_home(Path(name)) == Path(name)
    assert problems(home="/etc") == ["ANTREAN_HOME: /etc is a folder of the system: choose one of your own"]
