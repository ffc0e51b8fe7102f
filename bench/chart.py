"""A picture of a run: share of the ceiling and CPU a job, a bar a contender and measure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # not pyplot: no display is asked for

from bench.options import Measure


def draw_chart(path: Path, results: Mapping[Measure, Mapping[str, Mapping[str, Any]]], title: str) -> None:
    """Writes an SVG; `results` by measure, then by contender."""
    names = list(dict.fromkeys(name for found in results.values() for name in found))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    panels = (("share of the ceiling, %", "share_of_ceiling", 100.0), ("CPU a job, ms", "cpu_ms", 1.0))
    height = 0.8 / max(1, len(results))
    for axis, (label, quantity, factor) in zip(axes, panels, strict=True):
        for group, (measure, found) in enumerate(results.items()):
            for place, name in enumerate(names):
                if name not in found:
                    continue
                value = found[name][quantity] * factor
                bar = axis.barh(
                    place + (group - (len(results) - 1) / 2) * height,
                    value,
                    height * 0.92,
                    color=f"C{group}",
                    label=f"{measure.slots} slots, {measure.latency_s:g} s" if place == 0 else None,
                )
                axis.bar_label(bar, fmt="%.1f" if factor > 1 else "%.2f", padding=3, fontsize=8)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel(label)
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].axvline(100, color="grey", linewidth=0.8, linestyle="--")
    axes[1].legend(frameon=False, loc="lower right")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)
