"""Passwords from files, as containers and service managers hand them over."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from worker.broker.client import broker_address
from worker.errors import SettingsError
from worker.settings import Settings, load_settings
from worker.settings.database import PostgresqlAddress

ODD = "p@ss/w:rd %?#ü"


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("ANTREAN_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "password").write_text(ODD + "\n", encoding="utf-8")


def settings(**given: Any) -> Settings:
    return load_settings(**given, _env_file=None)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("redis://h:6379/0", "redis://:{}@h:6379/0"),
        ("redis://user@h", "redis://user:{}@h"),
        ("rediss://user:old@h:1/0?ssl_cert_reqs=required", "rediss://user:{}@h:1/0?ssl_cert_reqs=required"),
        ("redis://[::1]:6379?db=1", "redis://:{}@[::1]:6379?db=1"),
    ],
)
def test_a_brokers_password_is_put_into_its_address(given: str, made: str) -> None:
    encoded = "p%40ss%2Fw%3Ard%20%25%3F%23%C3%BC"
    address = broker_address(settings(broker_url=given, broker_password_file="password"))
    assert address == made.format(encoded)


def test_a_databases_password_is_put_into_its_address() -> None:
    told = settings(
        database_url="postgresql://antrean@h:5432/d?sslmode=require", database_password_file="password"
    )
    at = told.ledger_address
    assert isinstance(at, PostgresqlAddress)
    assert (at.user, at.password, at.host, at.parameters["sslmode"]) == ("antrean", ODD, "h", "require")
    assert ODD not in f"{told!r} {at!r} {at}"


def test_flowers_password_is_read_from_its_file() -> None:
    found = settings(flower_password_file="password").flower_password
    assert found is not None
    assert found.get_secret_value() == ODD
    assert settings().flower_password is None


def test_a_child_makes_the_same_of_what_it_inherits(monkeypatch: pytest.MonkeyPatch) -> None:
    told = settings(
        broker_url="redis://h",
        broker_password_file="password",
        database_url="postgresql://u@h/d",
        database_password_file="password",
        flower_password_file="password",
    )
    for name, value in told.as_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")
    assert settings() == told


@pytest.mark.parametrize("name", ["database", "broker"])
def test_a_password_file_that_is_of_no_use_is_a_sentence(name: str, tmp_path: Path) -> None:
    address = {"database": "postgresql://u@h/d", "broker": "redis://h"}[name]
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for file, words in (("missing", "cannot be read"), ("empty", "is empty"), ("binary", "holds no text")):
        with pytest.raises(SettingsError) as caught:
            settings(**{f"{name}_url": address, f"{name}_password_file": file})
        (problem,) = caught.value.problems
        assert problem.startswith(f"ANTREAN_{name.upper()}_URL: its password file")
        assert words in problem
    with pytest.raises(SettingsError, match=f"is of use with ANTREAN_{name.upper()}_URL only"):
        settings(**{f"{name}_password_file": "password"})


def test_a_simulation_reads_no_password_of_the_real_ones() -> None:
    told = settings(broker_url="redis://h", broker_password_file="password").for_simulation("http://h", "k")
    assert "ANTREAN_BROKER_PASSWORD_FILE" not in told.as_environment()
