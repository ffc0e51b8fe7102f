"""`antrean usage`: what the answers cost, by model, day, batch or custom_id."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import Annotated, Any, TextIO, cast

import orjson
import typer
from rich.cells import cell_len, set_cell_size

from worker.cli.console import json_for_output, note, out
from worker.cli.listing import complete_batch_id, iso
from worker.errors import InputError
from worker.operations.usage import open_usage
from worker.policy.cost import LARGEST_COUNT, CostSum
from worker.reports.summary import cost_facts, format_cost, format_count
from worker.settings import load_settings
from worker.storage.migrating import prepare_ledger
from worker.storage.usage_sums import UsageBy, UsageSum
from worker.text.printable import csv_cell, printable
from worker.text.wrapping import wrap_line

_EPOCH_DAY = date(1970, 1, 1).toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_LINES = 1_000
_IN_MEMORY = 4 * 1024 * 1024
_KEYS = {
    UsageBy.MODEL: "model",
    UsageBy.DAY: "day",
    UsageBy.BATCH: "batch_id",
    UsageBy.CUSTOM: "custom_id",
}
_FIGURES = (
    "answered",
    "used",
    "unused",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "unused_tokens",
)
_SUMMED = (*_FIGURES, "cost_nano", "unpriced", "absurd")
_SHOWN = ("answered", "unused", "prompt", "completion", "total", "cached", "reasoning", "cost")


@dataclass(slots=True)
class _Total:
    """The sum of all groups that were seen."""

    answered: int = 0
    used: int = 0
    unused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    unused_tokens: int = 0
    cost_nano: int = 0
    unpriced: int = 0
    absurd: int = 0

    @property
    def cost(self) -> CostSum:
        return CostSum(self.cost_nano, self.unpriced, self.answered)

    def add(self, one: UsageSum) -> None:
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(one, name))


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "usage",
        epilog="Example: antrean usage --by day --since 2026-07-01\n\n"
        "Example: antrean usage --by custom --batch batch_0193… --csv > usage.csv",
    )(usage)


def usage(
    by: Annotated[
        UsageBy,
        typer.Option(
            "--by",
            metavar="<what>",
            help="What to group by: model, day (in UTC), batch or custom (custom_id).",
        ),
    ] = UsageBy.MODEL,
    since: Annotated[
        str | None,
        typer.Option(
            help="Only answers from then on: a date, or a date and time such as 2026-07-01T12:00; "
            "in UTC unless it names an offset."
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Only this batch.", autocompletion=complete_batch_id)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print it as CSV, with a header.")] = False,
) -> None:
    """Add up the tokens of all answered calls, and what they cost.

    They are grouped by model, day, batch or custom_id, with the number of answered calls. Every answer that was
    paid for counts, also if it was not used: a second answer to a job whose first worker was taken for dead, and an
    answer without a completion that reports its tokens. Calls without an answer cost no tokens and do not count.
    Cached tokens are part of the prompt's, reasoning tokens of the completion's.

    The groups are sorted by tokens, the largest first; days by date. The screen shows the first 1,000 groups and
    the sum of all; --json and --csv have every group. In CSV, text that a spreadsheet would run as a formula begins
    with an apostrophe.
    """
    if as_json and as_csv:
        raise InputError("--json and --csv do not go together: choose one")
    since_ms = None if since is None else parse_since(since)
    ledger = prepare_ledger(load_settings())
    # Written aside first: a reader that pauses must not hold a transaction open.
    with SpooledTemporaryFile(max_size=_IN_MEMORY, mode="w+", encoding="utf-8", newline="") as spool:
        file = cast(TextIO, spool)
        with open_usage(ledger, by, since_ms=since_ms, batch=batch) as found:
            if as_csv:
                total = _write_csv(file, by, found.groups)
            elif as_json:
                total = _write_json(file, by, found.groups, since_ms=since_ms, batch_id=found.batch_id)
            else:
                total = _write_table(file, by, found.groups)
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout)
    if total.absurd:
        note(
            f"{format_count(total.absurd, 'answer')} told absurd numbers of tokens: at most {LARGEST_COUNT:,} are kept "
            "of each, and the sums with them are not to be believed"
        )


def parse_since(text: str) -> int:
    """Milliseconds since the epoch of a date or a date and time; UTC unless it names an offset."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(
            f"{printable(text)} is not a date: write it as 2026-07-01 or 2026-07-01T12:00"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _key(by: UsageBy, one: UsageSum) -> str | None:
    if by is UsageBy.DAY:
        return date.fromordinal(_EPOCH_DAY + int(one.key or 0)).isoformat()
    return None if one.key is None else str(one.key)


def _facts(by: UsageBy, one: UsageSum) -> dict[str, Any]:
    named: dict[str, Any] = {_KEYS[by]: _key(by, one)}
    if by is UsageBy.BATCH:
        named["label"] = one.label
    return named | {name: getattr(one, name) for name in _FIGURES} | cost_facts(one.cost)


def _write_csv(file: TextIO, by: UsageBy, found: Iterable[UsageSum]) -> _Total:
    header = [_KEYS[by], *(["label"] if by is UsageBy.BATCH else []), *_FIGURES, *cost_facts(CostSum())]
    writer = csv.DictWriter(file, header, lineterminator="\n")
    writer.writeheader()
    total = _Total()
    for one in found:
        total.add(one)
        writer.writerow({name: csv_cell(value) for name, value in _facts(by, one).items()})
    return total


def _write_json(
    file: TextIO, by: UsageBy, found: Iterable[UsageSum], *, since_ms: int | None, batch_id: str | None
) -> _Total:
    """One object, written group by group: there may be a million."""
    head = {"by": by.value, "since": None if since_ms is None else iso(since_ms), "batch_id": batch_id}
    total = _Total()
    file.write(json_for_output(orjson.dumps(head).decode())[:-1] + ',"groups":[')
    for i, one in enumerate(found):
        total.add(one)
        file.write((",\n" if i else "\n") + json_for_output(orjson.dumps(_facts(by, one)).decode()))
    sums = {name: getattr(total, name) for name in _FIGURES} | cost_facts(total.cost)
    file.write('\n],"total":' + orjson.dumps(sums).decode() + "}\n")
    return total


def _write_table(file: TextIO, by: UsageBy, found: Iterable[UsageSum]) -> _Total:
    """A line for each group; where that is too wide, its name has a line of its own."""
    total = _Total()
    groups = iter(found)
    shown = list(islice(groups, _MOST_LINES))
    for one in shown:
        total.add(one)
    left = 0
    for one in groups:
        total.add(one)
        left += 1
    if not shown:
        note("no answered call in the ledger fits")
        return total
    absent = "(no batch)" if by is UsageBy.BATCH else "(no custom_id)"
    names = [printable(f"{_key(by, one) or absent}  {one.label or ''}".rstrip()) for one in shown]
    rows = [(name, _figures(one)) for name, one in zip(names, shown, strict=True)]
    for line in lay_out(by.value, [*rows, ("all", _figures(total))], out.wraps_at):
        file.write(f"{line}\n")
    if left:
        note(f"{format_count(left, 'group')} more are in the sum but not shown: --csv has them all")
    return total


def lay_out(title: str, rows: Sequence[tuple[str, Sequence[str]]], width: int | None) -> Iterator[str]:
    """The lines of the table: of names with their figures, beside each other where `width` columns hold them.

    Where they do not, a name has a line of its own; and where the figures are too wide for one line, each has its word
    before it. Without a terminal `width` is None, and each group has one line.
    """
    widths = [max(len(word), *(len(figures[i]) for _, figures in rows)) for i, word in enumerate(_SHOWN)]
    widest = max(cell_len(name) for name in (title, *(name for name, _ in rows)))
    beside = sum(widths) + 2 * len(widths)
    table = [(title, _SHOWN), *rows]
    if width is None or widest + beside <= width:
        for name, figures in table:
            yield f"{set_cell_size(name, widest)}  {'  '.join(map(str.rjust, figures, widths))}"
    elif beside <= width:
        for name, figures in table:
            yield from wrap_line(name, width, measure=cell_len)
            yield f"  {'  '.join(map(str.rjust, figures, widths))}"
    else:
        for name, figures in rows:
            yield from wrap_line(name, width, measure=cell_len)
            # A word and its figure stay together while lines are broken; then the space is an ordinary one again.
            told = [f"{word}\xa0{figure}" for word, figure in zip(_SHOWN, figures, strict=True)]
            for line in wrap_line(f"  {' · '.join(told)}", width, hang=2, measure=cell_len):
                yield line.replace("\xa0", " ")


def _figures(one: UsageSum | _Total) -> tuple[str, ...]:
    counts = (
        one.answered,
        one.unused,
        one.prompt_tokens,
        one.completion_tokens,
        one.total_tokens,
        one.cached_tokens,
        one.reasoning_tokens,
    )
    known = one.cost.known_nano
    cost = "unknown" if known is None else format_cost(known)
    if known is not None and one.unpriced:
        cost += f" + {format_count(one.unpriced)} unpriced"
    return (*(format_count(count) for count in counts), cost)
