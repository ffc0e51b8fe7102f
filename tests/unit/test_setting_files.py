"""`.env` and `antrean.toml`: what cannot be read is named by its line, and never passes for what is not there."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import pytest

from worker.errors import SettingsError
from worker.settings import DEFAULT_BASE_URL, load_settings
from worker.settings.files import parse_dotenv, read_dotenv

BASE_URL = "ANTREAN_BASE_URL=http://127.0.0.1:18111"
KEY = "sk-internal"


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("ANTREAN_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def problems() -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("ANTREAN_BASE_URL: http://127.0.0.1:18111", 2),
        ("ANTREAN_BASE_URL:http://127.0.0.1:18111", 2),
        ("ANTREAN_BASE_URL:http://127.0.0.1:18111/v1?x=1", 2),
        ("ANTREAN_BASE_URL http://127.0.0.1:18111", 2),
        ("ANTREAN_BASE_URL", 2),
        ("export ANTREAN_BASE_URL", 2),
        ("set ANTREAN_BASE_URL=http://127.0.0.1:18111", 2),
        ("$env:ANTREAN_BASE_URL = 'http://127.0.0.1:18111'", 2),
        ("http://127.0.0.1:18111", 2),
        ("ANTREAN_BASE_URL='http://127.0.0.1:18111", 2),
        ('ANTREAN_BASE_URL="http://127.0.0.1:18111', 2),
        (f'ANTREAN_MODEL="m\n{BASE_URL}', 2),
        (f'ANTREAN_MODEL="m\n{BASE_URL}"', 2),
        (f"OTHER='it\n{BASE_URL}\nPOEM='\n", 2),
        (f'\n\n  \nOTHER="it\n{BASE_URL}\n', 5),
        ('ANTREAN_BASE_URL="http://127.0.0.1:18111"/v1', 2),
        ("ANTREAN_BASE_URL=${NOBODY_SET_THIS}", 2),
        ("ANTREAN_BASE_URL=http://${NOBODY_SET_THIS}/v1", 2),
        ("# a comment\n\n\nANTREAN_BASE_URL: x", 5),
        ("OTHER=1\r\n\r\nANTREAN_BASE_URL: x\r\n", 4),
    ],
)
def test_a_line_of_dotenv_that_cannot_be_read_is_named_by_its_number(text: str, line: int) -> None:
    Path(".env").write_text(f"ANTREAN_API_KEY={KEY}\n{text}", newline="")
    found = problems()
    assert found[0].startswith(f".env: line {line} "), found
    assert KEY not in str(found)


def test_what_may_be_a_key_is_never_quoted() -> None:
    Path(".env").write_text(
        "ANTREAN_API_KEY:sk-secret=\nsk-secret\n'sk secret'=1\nANTREAN_MODEL=${sk-secret}\n"
    )
    assert [problem.split()[2] for problem in problems()] == ["1", "2", "3", "4"]
    assert "secret" not in str(problems())


@pytest.mark.parametrize(
    "text",
    [
        BASE_URL,
        f"\ufeff{BASE_URL}\n",
        f"{BASE_URL}\r\nOTHER=1\r\n",
        f"export {BASE_URL} # where it is\n",
        'ANTREAN_BASE_URL = "http://127.0.0.1:18111"',
        "antrean_base_url='http://127.0.0.1:18111'",
        f'CERTIFICATE="-----BEGIN\nabc\n-----END"\n{BASE_URL}',
        "PORT=18111\nANTREAN_BASE_URL=http://127.0.0.1:${PORT}",
        "ANTREAN_BASE_URL=http://127.0.0.1:${NOBODY_SET_THIS:-18111}",
        f"GREETING=${{NOBODY_SET_THIS}}\n{BASE_URL}",  # of another program
    ],
)
def test_what_dotenv_files_are_made_of_is_read(text: str) -> None:
    Path(".env").write_text(text, newline="")
    assert load_settings().base_url == "http://127.0.0.1:18111"


def test_a_variable_of_the_environment_fills_a_place_in_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_HOST", "127.0.0.1:18111")
    Path(".env").write_text("ANTREAN_BASE_URL=http://${LLM_HOST}")
    assert load_settings().base_url == "http://127.0.0.1:18111"


@pytest.mark.parametrize("name", [".env", "antrean.toml"])
def test_a_file_that_is_there_by_name_only_is_no_missing_file(name: str) -> None:
    Path(name).symlink_to("nowhere")
    assert problems() == [f"{name} is a link to a file that does not exist"]


@pytest.mark.parametrize("name", [".env", "antrean.toml"])
def test_a_file_that_is_no_text_is_a_sentence(name: str) -> None:
    Path(name).write_bytes(BASE_URL.encode("utf-16"))
    assert problems() == [f"{name} cannot be read: it is not UTF-8 text"]


def test_utf_16_without_a_mark_is_no_empty_file() -> None:
    Path(".env").write_bytes(BASE_URL.encode("utf-16-le"))
    assert problems()[0].startswith(".env: line 1 ")


def test_a_virtual_environment_named_dotenv_is_no_file_of_settings() -> None:
    Path(".env").mkdir()
    assert load_settings().base_url == DEFAULT_BASE_URL


def test_a_pipe_is_read_once() -> None:
    """Password managers serve `.env` through a named pipe: who reads it twice waits for ever, or finds nothing."""
    os.mkfifo(".env")
    writer = Thread(target=Path(".env").write_text, args=(BASE_URL,))
    writer.start()
    assert load_settings().base_url == "http://127.0.0.1:18111"
    writer.join()


@pytest.mark.parametrize("where", ["the environment", ".env"])
def test_an_empty_address_is_not_the_default_host(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == ".env":
        Path(".env").write_text("ANTREAN_BASE_URL=\n")
    else:
        monkeypatch.setenv("ANTREAN_BASE_URL", "")
    (problem,) = problems()
    assert problem.startswith(f"ANTREAN_BASE_URL is set to nothing (in {where})")


def test_an_empty_variable_leaves_the_word_to_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(f"{BASE_URL}\nANTREAN_MODEL=\n")
    Path("antrean.toml").write_text('model = "m"')
    monkeypatch.setenv("ANTREAN_BASE_URL", "")
    settings = load_settings()
    assert (settings.base_url, settings.model) == ("http://127.0.0.1:18111", "m")


def test_a_problem_says_in_which_file_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("ANTREAN_LEASE_S=-1\n")
    Path("antrean.toml").write_text("concurrency = 0\n")
    monkeypatch.setenv("ANTREAN_MAX_ATTEMPTS", "0")
    ends = {problem.partition(":")[0]: problem.rpartition("(")[2] for problem in problems()}
    assert ends["ANTREAN_LEASE_S"] == "it stands in .env)"
    assert ends["ANTREAN_CONCURRENCY"] == "it stands in antrean.toml)"
    assert "stands" not in ends["ANTREAN_MAX_ATTEMPTS"]


def test_a_misspelt_name_in_a_file_is_refused_with_the_name_that_was_meant() -> None:
    Path(".env").write_text("ANTREAN_BASE_ULR=http://127.0.0.1:1\nANTREN_MODEL=m\n")
    Path("antrean.toml").write_text('base_rul = "x"\nANTREAN_MODEL = "m"\nsomething = 1\n')
    assert problems() == [
        "antrean.toml: ANTREAN_MODEL is no setting: is model meant?",
        "antrean.toml: base_rul is no setting: is base_url meant?",
        "antrean.toml: something is no setting",
        ".env: ANTREAN_BASE_ULR is no setting: is ANTREAN_BASE_URL meant?",
        ".env: ANTREN_MODEL is no setting: is ANTREAN_MODEL meant?",
    ]


def test_no_file_is_no_problem(tmp_path: Path) -> None:
    assert read_dotenv(tmp_path / "nowhere", {}) == parse_dotenv("", {})
