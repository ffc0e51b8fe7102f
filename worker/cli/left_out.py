"""Names what is left out of a folder, before the rest is sent."""

from __future__ import annotations

from collections.abc import Sequence

from worker.cli.console import note
from worker.reports.summary import format_count
from worker.sources.left_out import LeftOut, Reason
from worker.text.printable import printable

_FIRST = 3


def name_left_out(left_out: Sequence[LeftOut], *, names_all: bool) -> None:
    """Says on standard error what is left out: a line for each reason, with the first names or with all."""
    is_cut = False
    for reason in Reason:
        some = [one for one in left_out if one.reason is reason]
        # What cannot be read may have been meant: each is named.
        shown = some if names_all or reason is Reason.UNREADABLE else some[:_FIRST]
        is_cut |= len(shown) < len(some)
        if some:
            more = f" and {format_count(len(some) - len(shown))} more" if len(shown) < len(some) else ""
            note(f"{format_count(len(some))} left out, {reason}: {', '.join(map(_name, shown))}{more}")
    if is_cut:
        note("--verbose names all of them")


def _name(one: LeftOut) -> str:
    return printable(one.name) + (f" ({printable(one.details)})" if one.details else "")
