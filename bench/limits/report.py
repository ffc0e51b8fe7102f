"""The table of a run: a line a figure, a column a contender. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.limits.scenarios import COUNT, PER_S, PERCENT, SECONDS, Figures, Wanted
from bench.report import format_table

NOT_BUILT = "not built"
CONTENDERS: Mapping[str, str] = {
    "simulation": "simulation",
    "fixed-16": "16 fixed",
    "fixed-100": "100 fixed",
    "right": "right number",
    "auto": "auto",
    "openai": "openai, 10 retries",
}


@dataclass(slots=True)
class Result:
    """A scenario's figures by contender; a sentence in their place says why there are none."""

    name: str
    title: str
    wanted: Mapping[str, Wanted]
    found: dict[str, Figures | str] = field(default_factory=dict)


def format_results(results: Sequence[Result], *, is_judged: bool) -> str:
    """One table. What is not as wanted is bold, if `is_judged`."""
    columns = [one for one in CONTENDERS if any(one in result.found for result in results)]
    head = ("", "wanted", *(CONTENDERS[one] for one in columns))
    rows: list[tuple[str, ...]] = []
    for result in results:
        rows.append((f"**{result.name}**: {result.title}", "", *("" for _ in columns)))
        for name, wanted in result.wanted.items():
            cells = [_cell(result.found.get(one), name, wanted, is_judged) for one in columns]
            rows.append((wanted.label, format_wanted(wanted), *cells))
    return format_table(head, rows)


def format_wanted(wanted: Wanted) -> str:
    """Such as `≥ 90 %`; empty if nothing is wanted."""
    bounds = []
    if wanted.low is not None:
        bounds.append(f"≥ {format_value(wanted.low, wanted.unit)}")
    if wanted.high is not None:
        bounds.append(f"≤ {format_value(wanted.high, wanted.unit)}")
    return ", ".join(bounds)


def format_value(value: float, unit: str) -> str:
    if unit == PERCENT:
        return f"{value * 100:.1f} %"
    if unit == SECONDS:
        return f"{value:.1f} s"
    if unit == PER_S:
        return f"{value:.1f}/s"
    if unit == COUNT:
        return f"{value:,.0f}"
    return f"{value:.2f} {unit}"


def _cell(found: Figures | str | None, name: str, wanted: Wanted, is_judged: bool) -> str:
    if found is None:
        return ""
    if isinstance(found, str):
        return found
    value = found.get(name)
    is_wanted = wanted.low is not None or wanted.high is not None
    if value is None:
        text = "never" if name in found and is_wanted else ""
    else:
        text = format_value(value, wanted.unit)
    return f"**{text}**" if text and is_judged and not wanted.is_met(value) else text
