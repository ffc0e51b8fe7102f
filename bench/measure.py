"""Pure arithmetic of the benchmarks: the steady part of a run, percentiles, slopes and ratios."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Span:
    """One job: when its slot took it, and when its answer was there. Unix seconds."""

    started_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """All processes of a contender at one moment: CPU seconds so far, and resident bytes."""

    at_s: float
    cpu_s: float
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Steady:
    """The part of a run in which all slots are busy: from the first wave's last end to the last wave's first."""

    begin_s: float
    end_s: float
    jobs: int

    @property
    def jobs_per_s(self) -> float:
        return self.jobs / (self.end_s - self.begin_s)


def find_steady(spans: Sequence[Span], slots: int) -> Steady:
    """The steady part: without the first `slots` ends (ramp-up) and the last (drain).

    Raises ValueError with fewer than three times `slots` jobs.
    """
    if len(spans) < 3 * slots:
        raise ValueError(f"{len(spans)} jobs are too few for {slots} slots: three times as many are needed")
    ended = sorted(span.ended_s for span in spans)
    last = len(ended) - slots
    return Steady(begin_s=ended[slots], end_s=ended[last], jobs=last - slots)


def ramp_up_s(spans: Sequence[Span], slots: int) -> float:
    """Seconds from the first job's start until as many as there are slots were started."""
    started = sorted(span.started_s for span in spans)
    return started[slots - 1] - started[0]


def percentiles_beyond(spans: Sequence[Span], steady: Steady, latency_s: float) -> dict[str, float]:
    """Milliseconds from start to answer beyond the endpoint's own, of the jobs that ended in the steady part."""
    beyond = sorted(
        (span.ended_s - span.started_s - latency_s) * 1000
        for span in spans
        if steady.begin_s <= span.ended_s < steady.end_s
    )
    return {f"p{share}": percentile(beyond, share) for share in PERCENTILES}


def percentile(ascending: Sequence[float], share: float) -> float:
    """The value at `share` percent by nearest rank. Raises ValueError if there is none."""
    if not ascending:
        raise ValueError("no values, no percentile")
    return ascending[max(0, math.ceil(share / 100 * len(ascending)) - 1)]


def cpu_at(samples: Sequence[Sample], at_s: float) -> float:
    """CPU seconds at a moment, interpolated. Raises ValueError outside what was sampled."""
    times = [sample.at_s for sample in samples]
    if not times or not times[0] <= at_s <= times[-1]:
        raise ValueError("this moment was not sampled")
    right = min(bisect_right(times, at_s), len(samples) - 1)
    before, after = samples[right - 1], samples[right]
    if after.at_s == before.at_s:
        return after.cpu_s
    share = (at_s - before.at_s) / (after.at_s - before.at_s)
    return before.cpu_s + share * (after.cpu_s - before.cpu_s)


def cpu_per_job_ms(samples: Sequence[Sample], steady: Steady) -> float:
    """Milliseconds of CPU a job in the steady part."""
    return (cpu_at(samples, steady.end_s) - cpu_at(samples, steady.begin_s)) * 1000 / steady.jobs


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Rise of y by x, by least squares. Raises ValueError with fewer than two different x."""
    if len({x for x, _ in points}) < 2:
        raise ValueError("a slope needs two points")
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def rate_between(points: Sequence[tuple[float, float]]) -> float:
    """Median rise of y a unit of x between neighbours: a stall in one interval does not count."""
    return median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points) if b[0] > a[0])


def medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each number the median over the rounds; what is no number is taken from the first."""
    merged: dict[str, Any] = {}
    for name, value in rounds[0].items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        values = [one[name] for one in rounds]
        merged[name] = median(values) if is_number and None not in values else value
    return merged


def ratio(value: float | None, base: float | None) -> float | None:
    """`value` as a multiple of `base`, where both are there and the base is not nothing."""
    return None if value is None or not base else value / base
