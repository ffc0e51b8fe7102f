"""Formats numbers for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from worker.policy.cost import NANO_PER_USD, CostSum
from worker.text.printable import printable


def format_count(count: int, noun: str = "", plural: str | None = None) -> str:
    """`1,234 jobs`, `1 job`, `1,234`: with thousands separators, and the noun in singular or plural."""
    if not noun:
        return f"{count:,}"
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def describe_finish_reasons(counts: Mapping[str, int]) -> str:
    """`12 × length, 1 × content_filter`: the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{format_count(count)} × {printable(reason)}" for reason, count in ordered)


def format_cost(nano: int) -> str:
    """An amount of money: `$1,234.50`; below a dollar its first three digits: `$0.0372`."""
    if nano == 0:
        return "$0"
    if abs(nano) >= NANO_PER_USD * 0.9995:
        return f"${nano / NANO_PER_USD:,.2f}"
    exponent = int(f"{nano:.2e}".partition("e")[2]) - 9
    return "$" + f"{nano / NANO_PER_USD:.{min(9, 2 - exponent)}f}".rstrip("0")


def describe_cost(cost: CostSum) -> str:
    """`$1.23`, `$1.23 and 12 answers of unknown price`, or `cost unknown` where no price is."""
    known = cost.known_nano
    if known is None:
        return "cost unknown"
    if not cost.unknown:
        return format_cost(known)
    return f"{format_cost(known)} and {format_count(cost.unknown, 'answer')} of unknown price"


def cost_facts(cost: CostSum) -> dict[str, float | int | None]:
    """The same for JSON: `cost_usd`, null where nothing of it is known, and the number of answers that it lacks."""
    return {"cost_usd": to_usd(cost.known_nano), "unpriced_answers": cost.unknown}


def to_usd(nano: int | None) -> float | None:
    """Dollars of nanodollars."""
    return None if nano is None else nano / NANO_PER_USD


def format_seconds(seconds: float) -> str:
    """A duration: `0.42 s`, `12.3 s`, `4 min 05 s`, `2 h 03 min`, `3 d 04 h`. A negative one counts as 0."""
    seconds = max(0.0, seconds)
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def format_bytes(count: int) -> str:
    """A size: `512 B`, `1.5 KiB`, `32.0 MiB`, `4.0 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{count:,} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
