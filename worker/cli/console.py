"""Where the commands print: results on standard output, everything else on standard error.

Whatever is printed here is only text: it is never read as markup, and no character of it steers the terminal. So a
command need not ask of a name where it came from.
"""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Iterable
from typing import Any

import orjson
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from worker.files.names import rejoined
from worker.text.printable import in_ascii, printable, printable_json, printable_text
from worker.text.wrapping import break_line

_MOST_PROBLEMS = 20
_ERRORS = "antrean.in_ascii"
Part = str | tuple[str, str]
"""Some text; with a style, such as `("4 failed", "bold red")`."""


class PlainConsole(Console):
    """Rich's console, but a string is one line of text: no markup, and nothing in it steers the terminal.

    On a terminal the line is broken between words, its further rows indented. In a pipe or a file it stays one line.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)

    @property
    def wraps_at(self) -> int | None:
        """Columns of the terminal; None where lines stay whole. (FORCE_COLOR makes no terminal of a pipe.)"""
        return self.width if self.file.isatty() else None

    def say(self, *parts: Part, hang: int | None = None, end: str = "\n") -> None:
        """One line, of parts with a style of their own or without. A line break in a part is spelled out.

        `hang`: how far its further rows are indented; two columns more than the line begins with unless given.
        """
        told = ((part, "") if isinstance(part, str) else part for part in parts)
        line = Text.assemble(*((printable(rejoined(text)), style) for text, style in told))
        super().print(self._broken(line, hang), end=end)

    def print(self, *objects: Any, **options: Any) -> None:
        """As Rich's; a string is one line."""
        shown = (Text(printable(rejoined(one))) if isinstance(one, str) else one for one in objects)
        super().print(*(self._broken(one) if isinstance(one, Text) else one for one in shown), **options)

    def _broken(self, text: Text, hang: int | None = None) -> Text:
        width = self.wraps_at
        if width is None:
            return text
        rows: list[Text] = []
        for line in text.split("\n", allow_blank=True):
            for row in break_line(line.plain, width, hang=hang, measure=cell_len):
                rows.append(Text(" " * row.indent) + line[row.start : row.end])
        return Text("\n", end=text.end).join(rows)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich itself ends the process with 1, as of jobs that failed

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As Rich's; makes all text printable at the last step, also that of a live display or a table."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n\t"))


out = PlainConsole()
err = PlainConsole(stderr=True)


def print_text(text: str) -> None:
    """Text of several lines on standard output, as it is: nothing is wrapped, tabs stay tabs."""
    shown = printable_text(text)
    sys.stdout.write(shown if shown.endswith("\n") else f"{shown}\n")


def print_json(value: Any) -> None:
    """One JSON object on standard output, for a program to read."""
    sys.stdout.write(json_for_output(encode_json(value)) + "\n")


def json_for_output(encoded: str) -> str:
    """JSON as standard output may have it: nothing of it steers a terminal, or is lost in another encoding."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return printable_json(encoded, is_ascii=not encoding.startswith("utf"))


def speak_any_encoding() -> None:
    """Writes in ASCII what a stream's encoding lacks, so that a locale without UTF-8 ends no command."""
    codecs.register_error(_ERRORS, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


def encode_json(value: Any) -> str:
    """Indented JSON that every reader takes: a lone surrogate becomes U+FFFD."""
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONEncodeError:
        text = json.dumps(value, ensure_ascii=False, indent=2)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def note(text: str) -> None:
    """Prints a remark on standard error."""
    err.say((text, "dim"))


def complain(sentence: str, problems: list[str] | None = None) -> None:
    """Prints the sentence that says what to do, and each problem on a line of its own, at most 20 of them."""
    err.say(("antrean:", "bold red"), f" {sentence}")
    shown = (problems or [])[:_MOST_PROBLEMS]
    for problem in shown:
        err.say(f"  {problem}")
    if problems and len(problems) > len(shown):
        err.say(f"  … and {len(problems) - len(shown)} more")
