"""Text from outside: nothing of it steers a terminal, runs in a spreadsheet, or is lost in JSON."""

import json
import sys
import unicodedata

import pytest

from worker.text.printable import csv_cell, printable, printable_json, printable_text

_STEERS = [
    "\x1b]0;owned\x07",
    "\x9b31m",
    "\x00",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u200f",
    "\u061c",
    "\u2028",
    "\ufeff",
]


@pytest.mark.parametrize("text", _STEERS)
def test_what_steers_a_terminal_is_spelled_out(text: str) -> None:
    shown = printable(f"a{text}z")
    assert shown.isascii() and shown.isprintable()
    assert shown.startswith("a\\") and shown.endswith("z")


def test_no_control_and_no_mark_of_direction_is_left_whatever_the_text() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(everything)
    directed = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for character in set(shown):
        assert unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"}, ascii(character)
        assert unicodedata.bidirectional(character) not in directed, ascii(character)
    shown.encode()


@pytest.mark.parametrize("text", ["häßlich", "日本語", "עברית", "👩‍🚀", "a\\b", "[/nope]", "it's"])
def test_ordinary_text_of_any_script_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert printable_text(text) == text


def test_a_line_stays_one_line_and_a_text_keeps_its_lines() -> None:
    assert printable("a\nb\tc\rd") == "a\\nb\\tc\\rd"
    assert printable_text("a\r\nb\tc\rd\n") == "a\nb\tc\\rd\n"


@pytest.mark.parametrize("text", [*_STEERS, "a\nb", "\U000e0041", "\ud800", "plain", "日本"])
def test_json_means_the_same_and_steers_nothing(text: str) -> None:
    encoded = printable_json(json.dumps({"text": text}, ensure_ascii=False, indent=2))
    assert json.loads(encoded) == {"text": text}
    assert all(printable(line) == line for line in encoded.split("\n"))


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "  ="])
def test_a_cell_that_a_spreadsheet_would_run_begins_with_a_quote(sign: str) -> None:
    cell = csv_cell(f"{sign}HYPERLINK(1)")
    assert isinstance(cell, str) and cell.startswith("'")


def test_other_cells_stay_as_they_are() -> None:
    assert [csv_cell(value) for value in (-5, 1.5, None, "", "a=b", "'q", "x\ny")] == [
        -5,
        1.5,
        None,
        "",
        "a=b",
        "'q",
        "x\ny",
    ]
    assert csv_cell("a\x1b[2J") == "a\\x1b[2J"
