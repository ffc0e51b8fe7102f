"""What `antrean up` shows of its parts' output."""

from __future__ import annotations

import json
import re

from worker.stack.lines import LineSplitter, make_prefix, make_readable


def log_line(**fields: object) -> str:
    return json.dumps({"level": "info", "event": "job.done", "timestamp": "2026-01-02T03:04:05Z", **fields})


def test_a_json_line_becomes_time_level_event_and_fields() -> None:
    (row,) = make_readable(log_line(event="gate.shut", level="warning", kind="quota", strikes=2))
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning gate\.shut kind=quota strikes=2", row)


def test_a_text_that_could_be_mistaken_is_quoted() -> None:
    (row,) = make_readable(log_line(why="it is away", where="a=b", empty="", none=None, yes=True))
    assert row.endswith('why="it is away" where="a=b" empty="" none=null yes=true')


def test_a_traceback_stands_below_its_line_and_so_do_further_lines_of_an_event() -> None:
    rows = make_readable(log_line(event="broke\nbadly", exception="Traceback:\n  File x\nError: no"))
    assert rows[0].endswith("info broke")
    assert rows[1:] == ["  badly", "  Traceback:", "    File x", "  Error: no"]


def test_other_lines_pass_as_they_are() -> None:
    for line in ("celery@here ready.", '{"half": ', "[1, 2]", '{"no": "event"}', ""):
        assert make_readable(line) == [line]


def test_no_escape_sequence_of_a_part_reaches_the_terminal() -> None:
    assert make_readable("\x1b[31mred\x1b[0m \x1b]0;title\x07") == ["red "]
    assert make_readable("a\x07beep\x08 \u202eleft") == ["a\\x07beep\\x08 \\u202eleft"], "spelled out"
    (row,) = make_readable(log_line(words="\x1b[2Jgone"))
    assert row.endswith("words=gone")


def test_only_a_terminal_sees_colours() -> None:
    assert "\x1b" not in make_readable(log_line(level="error"))[0]
    assert "\x1b[31merror\x1b[0m" in make_readable(log_line(level="error"), is_coloured=True)[0]
    assert make_prefix("flower", width=7, number=2, is_coloured=False) == "flower  | "
    assert "\x1b[" in make_prefix("flower", width=7, number=2, is_coloured=True)


def test_lines_are_whole_however_the_pipe_cuts_them() -> None:
    splitter = LineSplitter()
    assert list(splitter.feed(b"on")) == []
    assert list(splitter.feed("e\ntwö\nth".encode())) == ["one", "twö"]
    assert list(splitter.feed(b"ree")) == []
    assert list(splitter.end()) == ["three"]
    assert list(splitter.end()) == []


def test_a_line_without_an_end_comes_in_pieces_and_takes_no_more_memory() -> None:
    splitter = LineSplitter()
    pieces = [piece for _ in range(10) for piece in splitter.feed(b"x" * 10_000)]
    pieces += list(splitter.end())
    assert "".join(pieces) == "x" * 100_000
    assert max(len(piece) for piece in pieces) <= 16 * 1024
