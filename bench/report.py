"""The tables that a run prints, made of its figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.measure import ratio

BASE = "openai"
_QUANTITIES = ("beyond_p50_ms", "beyond_p95_ms", "beyond_p99_ms")


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is also straight in a terminal; the first column to the left, others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join((first, *others)) + " |"

    rule = (
        "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    )
    return "\n".join((line(head), rule, *(line(row) for row in rows)))


def format_slots(slots: int, latency_s: float, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of all contenders at so many slots; `found` by contender's name."""
    head = ("", "jobs/s", "of the ceiling", "CPU a job, ms", "memory, MB", "beyond p50, ms", "p95", "p99")
    rows: list[tuple[str, ...]] = [
        ("the ceiling", f"{slots / latency_s:.1f}", "100.0 %", "", "", "0", "0", "0")
    ]
    for name, one in found.items():
        rows.append(
            (
                name,
                f"{one['jobs_per_s']:.1f}",
                f"{one['share_of_ceiling'] * 100:.1f} %",
                f"{one['cpu_ms']:.2f}",
                f"{one['peak_mb']:.0f}",
                *(f"{one[quantity]:.0f}" for quantity in _QUANTITIES),
            )
        )
    return format_table(head, rows)


def format_ratios(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The same as multiples of the official client; empty when it did not run."""
    base = found.get(BASE)
    if base is None:
        return ""
    quantities = ("jobs_per_s", "cpu_ms", "peak_mb", *_QUANTITIES)
    head = (f"as multiples of {BASE}", "jobs/s", "CPU a job", "memory", "beyond p50", "p95", "p99")
    rows = [
        (name, *(format_ratio(ratio(one[quantity], base[quantity])) for quantity in quantities))
        for name, one in found.items()
    ]
    return format_table(head, rows)


def format_ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def format_servers(found: Mapping[str, Mapping[str, Any]]) -> str:
    """CPU of what is not counted as the contenders' own, in milliseconds a job; and the noise: foreign work."""
    names = list(dict.fromkeys(name for one in found.values() for name in one["servers_cpu_ms"]))
    head = ("not counted, CPU a job, ms", *names, "foreign work, cores")
    rows = [
        (
            contender,
            *(f"{one['servers_cpu_ms'].get(name, 0.0):.2f}" for name in names),
            f"{one['foreign_cores']:.2f}",
        )
        for contender, one in found.items()
    ]
    return format_table(head, rows)


def format_extras(extras: Mapping[str, Any]) -> str:
    """A line for each thing that only antrean does."""
    lines = []
    if submit := extras.get("submit"):
        lines.append(
            f"- bulk submit: {submit['lines']:,} lines of {submit['bytes_a_line']:.0f} bytes in "
            f"{submit['wall_s']:.1f} s, {submit['requests_per_s']:,.0f} a second, "
            f"{submit['cpu_ms']:.3f} ms of CPU a line, {submit['peak_mb']:.0f} MB"
        )
    if lone := extras.get("lone"):
        idle, busy = lone["idle"], lone["beside_bulk"]
        lines.append(
            f"- a lone job, from `delay` to its stored result beyond the endpoint's time: idle p50 "
            f"{idle['p50']:.0f} ms, p95 {idle['p95']:.0f} ms; beside a bulk of {lone['backlog']:,} in "
            f"{lone['slots']} slots p50 {busy['p50']:.0f} ms, p95 {busy['p95']:.0f} ms"
        )
    if scale := extras.get("scale"):
        ratio_said = f", {scale['cpu_ratio']:.2f} times the first"
        parts = [f"{one['cpu_ms']:.2f} ms at {int(n):,} rows" for n, one in scale.items() if n.isdigit()]
        lines.append(f"- CPU of the worker a job: {', '.join(parts)}{ratio_said}")
    if life := extras.get("slope"):
        lines.append(
            f"- memory of a worker over {life['jobs']:,} jobs: {life['first_mb']:.1f} MB at half, "
            f"{life['last_mb']:.1f} MB at the end, {life['mb_a_100_000_jobs']:+.1f} MB a 100,000 jobs"
        )
    return "\n".join(lines)


def format_machine(machine: Mapping[str, Any], load_after: Sequence[float]) -> str:
    """One sentence for readers who wonder about noise."""
    before = ", ".join(f"{one:.2f}" for one in machine["load_average"])
    after = ", ".join(f"{one:.2f}" for one in load_after)
    return (
        f"{machine['date']}, {machine['cores']} cores, {machine['memory_gb']:g} GB, Python {machine['python']}; "
        f"load average {before} before and {after} after. Endpoint, broker and contender share the cores."
    )
