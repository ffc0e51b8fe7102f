"""What Flower is told, and where it may listen without a password."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from celery.events.state import Task

from worker.errors import SettingsError
from worker.flower.setup import check_exposure, decide_options, is_loopback, kept_secret
from worker.settings import load_settings


def options(
    password: str | None = "p", database: Path | None = Path("/x/flower.history.json"), **settings: object
) -> dict:
    chosen = load_settings(_env_file=None, **settings)
    return decide_options(chosen, password=password, cookie_secret="c", database=database)


def test_flower_listens_on_loopback_asks_for_a_password_and_is_read_only() -> None:
    ours = options()
    assert (ours["address"], ours["port"], ours["read_only"]) == ("127.0.0.1", 5555, True)
    assert ours["basic_auth"] == ["antrean:p"]


def test_memory_and_history_are_bounded() -> None:
    ours = options()
    assert (ours["max_tasks"], ours["max_workers"]) == (10_000, 500)
    assert ours["purge_offline_workers"] > 0
    assert (ours["persistent"], ours["db"], ours["state_save_interval"]) == (
        True,
        "/x/flower.history.json",
        30_000,
    )


def test_without_a_password_nobody_is_asked_and_without_a_database_nothing_is_kept() -> None:
    ours = options(password=None, database=None)
    assert ours["basic_auth"] == []
    assert (ours["persistent"], ours["state_save_interval"]) == (False, 0)


def test_no_column_shows_arguments() -> None:
    assert not {"args", "kwargs"} & set(options()["tasks_columns"].split(","))


def test_the_columns_that_say_how_a_task_went_are_those_that_a_narrow_window_shows() -> None:
    assert options()["tasks_columns"].split(",")[:3] == ["state", "result", "exception"]


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({"result": "'35 tokens · stop · 0.2 s'"}, ("35 tokens · stop · 0.2 s", None)),
        ({"exception": "JobFailed('server_error')"}, (None, "server_error")),
        ({"exception": "waits: rate_limited"}, (None, "waits: rate_limited")),
        ({"result": "None", "exception": "KeyError('x')"}, ("None", "KeyError('x')")),
    ],
)
def test_a_page_shows_words_and_not_how_python_writes_them(
    told: dict[str, str], shown: tuple[str | None, str | None]
) -> None:
    task = options()["format_task"](Task(uuid="t", **told))
    assert (task.result, task.exception) == shown


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_address_may_go_without_a_password(address: str) -> None:
    assert is_loopback(address)
    check_exposure(address, is_open=True)


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "10.0.0.7", "queue.example.com"])
def test_any_other_address_needs_the_password(address: str) -> None:
    check_exposure(address, is_open=False)
    with pytest.raises(SettingsError, match="loopback"):
        check_exposure(address, is_open=True)


def test_a_unix_socket_needs_the_password_because_flower_opens_it_to_all() -> None:
    with pytest.raises(SettingsError, match="world-writable"):
        check_exposure("127.0.0.1", is_open=True, unix_socket=True)


def test_a_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "flower.password"
    first = kept_secret(path)
    path.chmod(0o644)
    assert kept_secret(path) == first
    assert len(first) >= 20
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["flower.password"]


def test_a_password_may_be_written_into_the_file_by_hand(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("correct horse\n")
    assert kept_secret(tmp_path / "p") == "correct horse"


@pytest.mark.parametrize("text", ["", "\n", "zwei\nZeilen", "Ünicode"])
def test_a_file_without_a_usable_secret_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "p").write_text(text)
    with pytest.raises(SettingsError, match="remove it"):
        kept_secret(tmp_path / "p")


def test_settings_switch_the_password_off_by_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTREAN_FLOWER_AUTH", "off")
    monkeypatch.setenv("ANTREAN_FLOWER_PORT", "0")
    settings = load_settings(_env_file=None)
    assert (settings.flower_auth, settings.flower_port) == (False, 0)
