"""Where the commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape


class _Console(Console):
    """A console that raises where its reader has left: rich itself ends the process with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


out = _Console(highlight=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, soft_wrap=True)
_MOST_PROBLEMS = 20


def print_json(value: Any) -> None:
    """One JSON object on standard output, for a program to read."""
    sys.stdout.flush()
    sys.stdout.buffer.write(encode_json(value).encode() + b"\n")  # JSON is UTF-8 in any locale


def encode_json(value: Any) -> str:
    """JSON that every reader takes, indented: a lone surrogate becomes U+FFFD, whoever wrote it."""
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONEncodeError:
        text = json.dumps(value, ensure_ascii=False, indent=2)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def note(text: str) -> None:
    """A remark for the person at the keyboard."""
    err.print(escape(text), style="dim")


def complain(sentence: str, problems: list[str] | None = None) -> None:
    """The one sentence that says what to do, and what it is about, a line each."""
    err.print(f"[bold red]antrean:[/] {escape(sentence)}")
    shown = (problems or [])[:_MOST_PROBLEMS]
    for problem in shown:
        err.print(f"  {escape(problem)}")
    if problems and len(problems) > len(shown):
        err.print(f"  … and {len(problems) - len(shown)} more")
