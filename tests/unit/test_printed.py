"""One place prints, and what it prints is only text; no file is read in whatever encoding a locale has."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.cli import console
from worker.cli.console import PlainConsole, complain, encode_json, json_for_output, note, print_text
from worker.cli.content import content_texts
from worker.storage.story import Content
from worker.text.printable import in_ascii

ROOT = Path(__file__).parents[2]
HOSTILE = "[/nope] [bold]:smile: \x1b]0;owned\x07\x1b[2J \x9b31m \u202eevil \x00 \ud800"
# Standard streams are written to by these alone: bytes of results, programs of their own, sentences before the console.
WRITERS = {
    "worker/cli/console.py",
    "worker/cli/usage.py",
    "api_client/simulator/serve.py",
    "worker/logs/sink.py",
    "worker/reports/batchlines.py",
    "worker/startup.py",
    "worker/stack/figures.py",
}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for package in ("worker", "api_client", "schemas"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def assert_harmless(text: str) -> None:
    assert re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text) is None, ascii(text)
    assert "[/nope] [bold]:smile: \\x1b]0;owned" in text, "what was there is shown as it is written"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    for name in ("out", "err"):
        one = PlainConsole()
        one.file = stream
        monkeypatch.setattr(console, name, one)
    return stream


def test_whatever_is_printed_is_one_line_of_text(printed: io.StringIO) -> None:
    say = console.out
    say.say(HOSTILE, (HOSTILE, "bold red"))
    say.print(HOSTILE)
    say.print(HOSTILE, style="dim")
    note(HOSTILE + "\nantrean: all is well")
    complain(HOSTILE, [HOSTILE, "a\nb"])
    lines = printed.getvalue().splitlines()
    assert len(lines) == 7
    for line in lines[:6]:
        assert_harmless(line)
    assert lines[6] == "  a\\nb"


def test_nothing_gets_by_what_is_printed(printed: io.StringIO) -> None:
    table = Table()
    table.add_column("x", no_wrap=True)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    console.out.print(table, width=200, soft_wrap=False)
    assert_harmless(printed.getvalue())
    with Live(Text(HOSTILE), console=console.err, auto_refresh=False) as live:
        live.refresh()
    assert_harmless(printed.getvalue())


def test_a_style_is_still_a_style(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, stream = PlainConsole(), io.StringIO()
    terminal.file = stream
    terminal.say(("no", "bold red"), f": {HOSTILE}")
    told = stream.getvalue()
    assert "\x1b[1;31mno\x1b[0m" in told, "ours"
    assert "\x1b[2J" not in told and "\x1b]0" not in told, "not theirs"


def test_a_text_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(f"one\r\n\ttwo {HOSTILE}")
    told = capsys.readouterr().out
    assert told.startswith("one\n\ttwo [/nope]") and told.endswith("\n")
    assert_harmless(told.replace("\t", " "))


def test_json_on_a_terminal_steers_nothing_and_stays_json(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode_json({"id": HOSTILE, "n": "é日😀"})
    assert_harmless(json_for_output(encoded).replace("\\u001b", "\\x1b"))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert json_for_output(encoded).isascii()


def test_other_encodings_get_the_nearest_characters() -> None:
    assert in_ascii("3 × length · 4 … é 😀") == "3 x length - 4 ... \\u00e9 \\ud83d\\ude00"


def test_no_command_writes_markup_and_none_prints_by_itself() -> None:
    markup = re.compile(r"\[/?(bold|dim|red|green|yellow|blue|cyan|magenta|italic|link)\b[^\]]*\]|\[/\]")
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not markup.search(node.value), f"{name}:{node.lineno}: consoles read no markup"
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("print", "typer.echo", "typer.secho", "click.echo", "rich.print"):
                assert name == "api_client/simulator/__main__.py", f"{name}:{node.lineno}: prints by itself"
            if re.fullmatch(r"sys\.(stdout|stderr)(\.buffer)?\.write", called):
                assert name in WRITERS, f"{name}:{node.lineno}: writes by itself"


def test_no_file_is_read_or_written_in_the_encoding_of_a_locale() -> None:
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg for keyword in node.keywords}
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            positional = len(node.args) - (called == "write_text")
            if called in ("read_text", "write_text"):
                assert "encoding" in given or positional > 0, (
                    f"{name}:{node.lineno}: {called} names no encoding"
                )
            elif called == "open" and ast.unparse(node.func) != "os.open":
                modes = [one.value for one in node.args if isinstance(one, ast.Constant)]
                is_binary = any("b" in str(mode) for mode in modes)
                assert is_binary or "encoding" in given, f"{name}:{node.lineno}: open names no encoding"


def test_a_jobs_texts_are_shown_as_text() -> None:
    request = (
        '{"model":"m","temperature":0,"messages":['
        '{"role":"system","content":"Be\\nbrief."},'
        '{"role":"user","content":[{"type":"text","text":"Line 1\\nLine 2"},{"type":"image_url","image_url":{"url":"x"}}]},'
        '{"role":"assistant","content":null,"tool_calls":[]}]}'
    )
    content = Content(request=request, answer="a\n  b", reasoning=None, error=b"\xff", user_metadata=None)
    told = list(content_texts(content))
    assert told[:2] == [
        ("request", '{\n  "model": "m",\n  "temperature": 0\n}'),
        ("message 1 · system", "Be\nbrief."),
    ]
    assert told[2][0] == "message 2 · user" and told[2][1].startswith("Line 1\nLine 2\n{")
    assert told[3:] == [
        ("message 3 · assistant", '{\n  "tool_calls": []\n}'),
        ("answer", "a\n  b"),
        ("error body", "\ufffd"),
    ]


@pytest.mark.parametrize("request_", ["no json \ud800", "[1]", '{"messages":5}', '{"messages":["odd"]}'])
def test_a_request_of_any_form_is_shown(request_: str) -> None:
    content = Content(request=request_, answer=None, reasoning=None, error=None, user_metadata={"a": 1})
    assert [label for label, _ in content_texts(content)][:2] == ["metadata", "request"]
