"""Names that are no settings, but look like one: a typing error must not pass for a default in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.settings import Settings
from worker.settings.sources import ENVIRONMENT, describe_unknown, read_sources, unknown_names

NAMES = Settings.model_fields


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ANTREAN_BASE_ULR", "ANTREAN_BASE_URL"),
        ("ANTREAN_BASEURL", "ANTREAN_BASE_URL"),
        ("antrean_base_ulr", "ANTREAN_BASE_URL"),
        ("ANTREAN_CONCURENCY", "ANTREAN_CONCURRENCY"),
        ("ANTREAN_APIKEY_FILE", "ANTREAN_API_KEY_FILE"),
        ("ANTREN_API_KEY", "ANTREAN_API_KEY"),
        ("ANTEARN_HOME", "ANTREAN_HOME"),
    ],
)
def test_a_misspelt_name_is_told_with_the_name_that_was_meant(name: str, meant: str) -> None:
    assert unknown_names([name], NAMES) == [name]
    assert describe_unknown(name, NAMES) == f"{name} is no setting: is {meant} meant?"


@pytest.mark.parametrize(
    "name",
    [
        "ANTREAN_BASE_URL",
        "antrean_base_url",
        "ANTREAN_IN_STACK",
        "ANTHROPIC_BASE_URL",
        "OPENAI_API_KEY",
        "HOME",
        "MODEL",
    ],
)
def test_other_names_are_left_alone(name: str) -> None:
    assert unknown_names([name], NAMES) == []


def test_a_name_that_is_like_nothing_is_told_alone() -> None:
    assert describe_unknown("ANTREAN_XYZZY", NAMES) == "ANTREAN_XYZZY is no setting"


def test_a_name_steers_no_terminal() -> None:
    assert describe_unknown("ANTREAN_\x1b[2J", NAMES).isprintable()


def test_each_value_says_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("ANTREAN_MODEL=dotenv\nANTREAN_HOME=x\n")
    Path("antrean.toml").write_text('model = "toml"\nconcurrency = 3\n')
    found = read_sources(NAMES, {"ANTREAN_HOME": "/srv", "antrean_lease_s": "3"})
    assert found.values == {"model": "dotenv", "home": "/srv", "concurrency": 3, "lease_s": "3"}
    assert found.origins == {
        "model": ".env",
        "home": ENVIRONMENT,
        "concurrency": "antrean.toml",
        "lease_s": ENVIRONMENT,
    }


def test_a_misspelt_address_never_means_the_default_host() -> None:
    misspelt = {"ANTREAN_BASE_ULR": "http://127.0.0.1:1"}
    assert read_sources(NAMES, misspelt, env_file=None).problems == [
        "ANTREAN_BASE_ULR is no setting: is ANTREAN_BASE_URL meant?"
    ]
    assert read_sources(NAMES, {**misspelt, "ANTREAN_BASE_URL": "http://h"}, env_file=None).problems == []
