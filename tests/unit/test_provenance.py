"""A folder may come from anywhere: what others could write there is not believed, by no command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import typer

from worker.attempt.credentials import Credentials
from worker.cli.main import app
from worker.errors import ExitCode, SettingsError
from worker.settings import load_settings
from worker.stack.attachment import Stack

STRANGER = 54321
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
GROUP: Any = typer.main.get_command(app)
ASK_NOBODY = {"simulate"}  # it reads no settings, and writes nothing
MORE = {"retry": ["--failed"], "prune": ["--all", "--dry-run"], "results": ["--lone"], "show": ["x"]}
GIVEN = {"documents": "documents", "prompt": "prompt.md", "file": "requests.jsonl", "older_than": "30d"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with what the commands ask for, and no settings."""
    for name in [name for name in os.environ if name.startswith("ANTREAN_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    Path("documents").mkdir()
    Path("documents/a.txt").write_text("A text.")
    Path("prompt.md").write_text("Say {{ text }}")
    Path("requests.jsonl").write_text('{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}\n')
    return tmp_path


def arguments(name: str) -> list[str]:
    """The least that this command takes."""
    made = [name]
    for parameter in GROUP.commands[name].params:
        if parameter.required:
            value = GIVEN.get(parameter.name, "x")
            made += [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]
    return made


def problem() -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(set(GROUP.commands) - ASK_NOBODY))
def test_every_command_refuses_a_home_that_others_can_write_in(
    here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / ".antrean").mkdir()
    (here / ".antrean").chmod(0o777)
    said = ""
    try:
        code = GROUP.main([*arguments(name), *MORE.get(name, ())], standalone_mode=False)
    except SettingsError as exc:
        code, said = exc.exit_code, str(exc)
    except SystemExit as exc:  # Celery's commands end by themselves
        code = exc.code
    said += "".join(capsys.readouterr())
    assert "can be written by everybody: `chmod go-w" in said.replace("\n", " ")
    assert code == (1 if name == "health" else ExitCode.SETTINGS)  # health speaks to container engines
    assert not list((here / ".antrean").iterdir())


def test_the_stack_refuses_it_as_well(here: Path) -> None:
    (here / "home").mkdir()
    (here / "home").chmod(0o777)
    with pytest.raises(SettingsError, match="can be written by everybody"):
        Stack.attach(here / "home")
    assert not list((here / "home").iterdir())


@AS_ROOT
@pytest.mark.parametrize("name", [".antrean", ".env", "antrean.toml"])
def test_what_another_user_laid_there_is_refused(here: Path, name: str) -> None:
    (here / name).mkdir() if name == ".antrean" else (here / name).touch()
    os.chown(here / name, STRANGER, STRANGER)
    assert f"belongs to the user {STRANGER}" in problem()
    assert "chmod" not in problem()


@pytest.mark.parametrize("name", [".env", "antrean.toml"])
def test_a_file_of_settings_that_everybody_can_write_is_refused_before_it_is_read(
    here: Path, name: str
) -> None:
    (here / name).write_text("ANTREAN_API_KEY='planted\n")
    (here / name).chmod(0o666)
    assert f"{name} of this folder can be written by everybody" in problem()
    assert f"`chmod go-w {name}`" in problem()
    assert "planted" not in problem()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (".env", "ANTREAN_BASE_URL=http://127.0.0.1:9/elsewhere\n"),
        (".env", "antrean_base_url=http://127.0.0.1:9/elsewhere\n"),
        ("antrean.toml", 'base_url = "http://127.0.0.1:9/elsewhere"\n'),
    ],
)
def test_an_address_of_the_folder_for_a_key_of_the_environment_is_said_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, line: str
) -> None:
    (here / name).write_text(line)
    monkeypatch.setenv("ANTREAN_API_KEY", "sk-of-the-environment")
    settings = load_settings()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("worker.attempt.credentials._say_once", _say_afresh())
    Credentials(settings)
    Credentials(settings)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "goes to http://127.0.0.1:9/elsewhere" in said
    assert name in said
    assert "sk-of" not in said
    assert settings.for_simulation("http://127.0.0.1:1", "k").address_file is None


def _say_afresh() -> Any:
    from functools import cache

    from worker.attempt import credentials

    return cache(credentials._say_once.__wrapped__)


def test_where_key_and_address_are_of_one_source_nothing_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / ".env").write_text("ANTREAN_BASE_URL=http://127.0.0.1:9\nANTREAN_API_KEY=sk-both\n")
    assert load_settings().address_file is None
    monkeypatch.setenv("ANTREAN_API_KEY", "sk")
    monkeypatch.setenv("ANTREAN_BASE_URL", "http://127.0.0.1:9")
    assert load_settings().address_file is None
