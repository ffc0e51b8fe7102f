"""A command that prints the key: when it runs, what it may print, and that nobody sees what it printed."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.clock import FakeClock
from tests.support.processes import is_gone, wait_until
from worker.attempt.key_command import KeyCommand
from worker.attempt.printed_key import KeyProgram, NoKeyPrinted, PrintedKey, parse_printed
from worker.errors import ExitCode, KeyUnavailable, SettingsError
from worker.settings import load_settings

SECRET = "sk-pl4nted"


class Printer:
    """What the command prints, run after run; the last one again and again."""

    def __init__(self, *prints: PrintedKey | str) -> None:
        """A str is why there is no key."""
        self.prints = list(prints)
        self.runs = 0

    def __call__(self) -> PrintedKey:
        self.runs += 1
        found = self.prints.pop(0) if len(self.prints) > 1 else self.prints[0]
        if isinstance(found, str):
            raise NoKeyPrinted(found)
        return found


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def run(*words: str, timeout_s: float = 10.0, **environ: str) -> PrintedKey:
    return KeyProgram(words, timeout_s=timeout_s, environ={"PATH": os.environ["PATH"], **environ}).run()


def why_not(*words: str, timeout_s: float = 10.0) -> str:
    with pytest.raises(NoKeyPrinted) as caught:
        run(*words, timeout_s=timeout_s)
    told = "".join(traceback.format_exception(caught.value))
    assert SECRET not in told
    assert caught.value.__context__ is None or SECRET not in repr(vars(caught.value.__context__))
    return str(caught.value)


def test_the_command_is_run_when_the_key_is_first_needed_and_no_more(clock: FakeClock) -> None:
    printer = Printer(PrintedKey("sk-one"))
    command = KeyCommand(printer, clock)
    assert (printer.runs, command.known()) == (0, ())
    assert [command.current() for _ in range(3)] == [("sk-one",)] * 3
    clock.advance(86_400)
    assert (command.current(), printer.runs) == (("sk-one",), 1)


def test_it_is_run_again_when_the_key_is_refused_but_once_for_all_calls_of_that_key(clock: FakeClock) -> None:
    printer = Printer(PrintedKey("sk-one"), PrintedKey("sk-two"), PrintedKey("sk-three"))
    command = KeyCommand(printer, clock)
    command.current()
    sent_s = clock.monotonic_s()
    clock.advance(1)
    assert [command.reread(sent_s) for _ in range(16)] == [("sk-two",)] * 16
    assert printer.runs == 2
    sent_s = clock.monotonic_s()
    clock.advance(1)
    assert command.reread(sent_s) == ("sk-three",)


def test_one_run_at_a_time_is_shared_by_all_threads() -> None:
    may_end, at_once, most = threading.Event(), [0], [0]

    def slow() -> PrintedKey:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        may_end.wait(20)
        at_once[0] -= 1
        calls.append(1)
        return PrintedKey("sk-one")

    calls: list[int] = []
    command = KeyCommand(slow)
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(command.current) for _ in range(8)]
        wait_until(lambda: at_once[0] == 1)
        may_end.set()
        assert {one.result(20) for one in found} == {("sk-one",)}
    assert (len(calls), most) == (1, [1])


def test_a_key_that_ends_is_renewed_before_its_end(clock: FakeClock) -> None:
    printer = Printer(
        PrintedKey("sk-one", clock.now_ms() + 3_600_000), PrintedKey("sk-two", clock.now_ms() + 7_200_000)
    )
    command = KeyCommand(printer, clock)
    assert command.current() == ("sk-one",)
    clock.advance(3600 - 61)
    assert command.current() == ("sk-one",)
    clock.advance(2)
    assert (command.current(), printer.runs) == (("sk-two",), 2)


@pytest.mark.parametrize("life_s", [-100, 0, 1, 20])
def test_a_key_that_has_ended_already_is_not_asked_for_at_each_call(clock: FakeClock, life_s: int) -> None:
    """The clock of this machine may be wrong."""
    printer = Printer(PrintedKey("sk-one", clock.now_ms() + life_s * 1000))
    command = KeyCommand(printer, clock)
    for _ in range(29):
        assert command.current() == ("sk-one",)
        clock.advance(1)
    assert printer.runs == 1


def test_a_run_that_fails_leaves_the_last_key_and_is_logged_once(clock: FakeClock) -> None:
    printer = Printer(PrintedKey("sk-one", clock.now_ms() + 600_000), "ended with exit code 1")
    command = KeyCommand(printer, clock)
    command.current()
    clock.advance(600)
    with capture_logs() as logs:
        for _ in range(60):
            assert command.current() == ("sk-one",)
            clock.advance(1)
        assert command.reread(clock.monotonic_s()) == ("sk-one",)
    assert [one["event"] for one in logs] == ["key_command.failed"]
    assert logs[0]["why"] == "ended with exit code 1"
    assert 4 <= printer.runs <= 8, "tried again ever more slowly"


def test_without_any_key_the_sentence_says_why_and_what_to_do(clock: FakeClock) -> None:
    command = KeyCommand(Printer("did not end within 10 s", PrintedKey("sk-one")), clock)
    with pytest.raises(
        KeyUnavailable, match="ANTREAN_API_KEY_COMMAND did not end within 10 s; run it in"
    ) as caught:
        command.current()
    assert caught.value.exit_code is ExitCode.REFUSED
    clock.advance(1)
    assert command.current() == ("sk-one",)


@pytest.mark.parametrize(
    ("printed", "key"),
    [
        (b"sk-one", PrintedKey("sk-one")),
        (b"sk-one\n", PrintedKey("sk-one")),
        (b' {"key": "sk-one"}\n', PrintedKey("sk-one")),
        (b'{"key": "sk-one", "expires_at": null}', PrintedKey("sk-one")),
        (b'{"key": "sk-one", "expires_at": 1700000000}', PrintedKey("sk-one", 1_700_000_000_000)),
        (b'{"key": "sk-one", "expires_at": "2023-11-14T22:13:20Z"}', PrintedKey("sk-one", 1_700_000_000_000)),
        (
            b'{"key": "sk-one", "expires_at": "2023-11-14T23:13:20.5+01:00"}',
            PrintedKey("sk-one", 1_700_000_000_500),
        ),
        (b'{"key": "sk-one", "expires_at": "2023-11-14T22:13:20"}', PrintedKey("sk-one", 1_700_000_000_000)),
    ],
)
def test_a_bare_line_and_json_are_keys(printed: bytes, key: PrintedKey) -> None:
    assert parse_printed(printed) == key


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (b"", "printed nothing"),
        (b" \n", "printed nothing"),
        (b"sk-pl4nted\nand more", "printed no key"),
        (b"Enter password: sk-pl4nted", "printed no key"),
        (b"sk-pl4nted\xff", "printed no key"),
        (b'{"key": "sk-pl4nted', "printed no key"),
        (b'{"token": "sk-pl4nted"}', "printed no key"),
        (b'{"key": ["sk-pl4nted"]}', "printed no key"),
        (b'{"key": "sk-pl4nted", "expires_at": "tomorrow"}', "no time"),
        (b'{"key": "sk-pl4nted", "expires_at": true}', "no time"),
        (b'{"key": "sk-pl4nted", "expires_at": -5}', "no time"),
        (b'{"key": "sk-pl4nted", "expires_at": 1e300}', "no time"),
    ],
)
def test_anything_else_is_no_key_and_is_not_quoted(printed: bytes, words: str) -> None:
    with pytest.raises(NoKeyPrinted, match=words) as caught:
        parse_printed(printed)
    assert "pl4nted" not in "".join(traceback.format_exception(caught.value))
    assert "pl4nted" not in repr(vars(caught.value.__context__ or caught.value))


def test_the_command_gets_no_shell_no_input_and_none_of_our_settings() -> None:
    code = "import os, sys; print('-'.join([*sys.argv[1:], sys.stdin.read(), os.environ.get('ANTREAN_X', 'unset')]))"
    assert run(sys.executable, "-c", code, "$HOME;*", ANTREAN_X="x").key == "$HOME;*--unset"


def test_each_way_to_fail_is_a_sentence_without_what_was_printed() -> None:
    assert why_not("/no/such/program", SECRET) == "cannot be started (No such file or directory)"
    assert why_not("sh", "-c", f"echo {SECRET}; echo {SECRET} >&2; exit 3") == "ended with exit code 3"
    assert why_not("sh", "-c", f"echo {SECRET}; kill -9 $$") == "was ended by signal 9"
    assert why_not("sh", "-c", f"while :; do echo {SECRET}; done").startswith("printed more than 64 KiB")
    assert why_not("sh", "-c", f"echo {SECRET} twice").startswith("printed no key")


def test_a_command_that_takes_too_long_is_killed_with_what_it_has_started(tmp_path: Path) -> None:
    began_s = time.monotonic()
    script = f"sleep 60 & echo $! > {tmp_path}/pid; echo {SECRET}; wait"
    assert why_not("sh", "-c", script, timeout_s=0.5) == "did not end within 0.5 s"
    assert time.monotonic() - began_s < 20
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: is_gone(pid), what="its child has ended")


def test_what_keeps_the_output_open_after_the_command_has_ended_is_killed_as_well(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; echo {SECRET}"
    assert why_not("sh", "-c", script, timeout_s=0.5) == "did not end within 0.5 s"
    wait_until(lambda: is_gone(int((tmp_path / "pid").read_text())), within_s=5, what="its child is gone")


def test_a_worker_that_ends_waits_for_no_command_and_leaves_none_behind(tmp_path: Path) -> None:
    program = KeyProgram(("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"), timeout_s=60)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(program.run)
        pid = int(wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()))
        program.stop()
        with pytest.raises(NoKeyPrinted, match="was ended by signal 9"):
            run.result(20)
    assert is_gone(pid)
    with pytest.raises(NoKeyPrinted, match="was not run"):
        program.run()


def test_a_command_that_begins_in_the_moment_of_the_stop_is_killed_as_well(tmp_path: Path) -> None:
    class Environment(dict[str, str]):
        """Is read when the command is about to be started."""

        def items(self) -> Any:
            program.stop()
            return super().items()

    words = ("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    program = KeyProgram(words, timeout_s=30, environ=Environment(os.environ))
    began_s = time.monotonic()
    with pytest.raises(NoKeyPrinted, match="was ended by signal 9"):
        program.run()
    assert time.monotonic() - began_s < 20


def problems(**given: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(_env_file=None, **given)
    return "; ".join(caught.value.problems)


def test_two_of_the_settings_of_a_key_are_a_sentence(tmp_path: Path) -> None:
    two = problems(api_key=SECRET, api_key_command=f"echo {SECRET}")
    assert two == "ANTREAN_API_KEY and ANTREAN_API_KEY_COMMAND are both set: keep one"
    three = problems(api_key=SECRET, api_key_file=tmp_path / "k", api_key_command="x")
    assert three.endswith("ANTREAN_API_KEY_FILE and ANTREAN_API_KEY_COMMAND are all set: keep one")


@pytest.mark.parametrize("line", ["echo 'sk-pl4nted", "echo sk-pl4nted\\", "  ", "''"])
def test_a_command_line_that_is_none_is_a_sentence(line: str) -> None:
    said = problems(api_key_command=line)
    assert said.startswith("ANTREAN_API_KEY_COMMAND: ")
    assert "pl4nted" not in said


def test_the_program_of_a_relative_path_is_found_from_the_folder_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = load_settings(_env_file=None, api_key_command="./get key 'a b'")
    assert "get" not in repr(told)
    line = told.as_environment()["ANTREAN_API_KEY_COMMAND"]
    assert shlex.split(line) == [str(tmp_path / "get"), "key", "a b"]
    kept = load_settings(_env_file=None, api_key_command="get key").api_key_command
    assert kept is not None
    assert kept.get_secret_value() == "get key"


@pytest.mark.parametrize("name", [".env", "antrean.toml"])
def test_a_folder_may_not_say_which_command_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for one in [one for one in os.environ if one.startswith("ANTREAN_")]:
        monkeypatch.delenv(one)
    line = "ANTREAN_API_KEY_COMMAND=run-me" if name == ".env" else 'api_key_command = "run-me"'
    (tmp_path / name).write_text(line + "\n")
    with pytest.raises(SettingsError, match=rf"{name} may not name a command: set it in the environment"):
        load_settings()
    monkeypatch.setenv("ANTREAN_API_KEY_COMMAND", "mine")
    assert load_settings().api_key_command is not None
