"""Whether the slots fit the machine: a number must, and `auto` takes as many as do."""

from __future__ import annotations

import resource

import pytest

from worker.errors import SettingsError
from worker.operations import capacity
from worker.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may open 150 files, and no more."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (150, 150))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)  # of the process that runs these tests
    monkeypatch.setattr(capacity, "count_startable_threads", lambda wanted: wanted)


def test_auto_tries_no_more_than_fits() -> None:
    fitted = capacity.make_room(load_settings(_env_file=None))
    assert (fitted.max_concurrency, fitted.call_count) == (50, 50)
    assert fitted.concurrency == "auto"


def test_a_number_that_does_not_fit_is_refused_and_the_number_that_would_is_told() -> None:
    with pytest.raises(SettingsError, match=r"ANTREAN_CONCURRENCY: 300 slots .* set it to 47 at most"):
        capacity.make_room(load_settings(concurrency=300, _env_file=None))


def test_what_fits_stays_as_it_is() -> None:
    for told in (
        load_settings(concurrency=10, _env_file=None),
        load_settings(max_concurrency=20, _env_file=None),
    ):
        assert capacity.make_room(told) is told


def test_a_machine_with_room_for_no_slot_is_named_with_the_setting_that_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50, 50))
    with pytest.raises(SettingsError, match="ANTREAN_MAX_CONCURRENCY: 256 slots need 356 open files"):
        capacity.make_room(load_settings(_env_file=None))


def with_tables(*lines: str) -> Settings:
    told = {
        f"e{number}": {"base_url": f"http://e{number}", **({"concurrency": line} if line else {})}
        for number, line in enumerate(lines)
    }
    return load_settings(endpoint_tables=told, _env_file=None)


def test_endpoints_share_the_room_of_those_whose_number_is_free() -> None:
    fitted = capacity.make_room(with_tables("", "", "8"))
    assert fitted.call_count == 50
    assert [one.call_count for one in fitted.endpoints] == [21, 21, 8]


def test_endpoints_whose_numbers_do_not_fit_are_refused_together() -> None:
    with pytest.raises(SettingsError, match="the endpoints of the tables need 162 open files together"):
        capacity.make_room(with_tables("30", "30"))
