"""What a run of the benchmarks is told on its command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = ("antrean-sqlite", "antrean-postgresql", "openai", "openai-aiohttp", "celery-requests")
EXTRAS = ("submit", "lone")
_WHOLE_S = 12.0  # how long a contender of quick answers is measured, if it keeps to the ceiling


@dataclass(frozen=True, slots=True)
class Measure:
    """So many calls in flight against an endpoint that takes so long."""

    slots: int
    latency_s: float

    def __str__(self) -> str:
        return f"{self.slots} slots, an endpoint of {self.latency_s:g} s"


# Quick answers show what stands between two calls of a slot; many slots show what a job costs.
MEASURES = (Measure(100, 0.2), Measure(100, 0.5), Measure(100, 2.0), Measure(500, 2.0))
_QUICK = (Measure(50, 0.5),)


@dataclass(frozen=True, slots=True)
class Options:
    """One run. `jobs` None: eight waves of the slots for each contender, more where answers are quick."""

    measures: tuple[Measure, ...]
    latency_s: float  # for what is measured with few slots
    jobs: int | None
    only: tuple[str, ...]
    out: Path
    repeat: int
    submit_lines: int
    backlog: int
    lone_probes: int
    is_scale: bool
    is_slope: bool
    is_quick: bool

    def job_count(self, measure: Measure) -> int:
        """Jobs of one contender: enough for a ramp-up, a drain, and some waves between them."""
        waves = 8 if self.is_quick else max(8, math.ceil(_WHOLE_S / measure.latency_s))
        return max(measure.slots * 4, measure.slots * waves if self.jobs is None else self.jobs)

    def has(self, name: str) -> bool:
        return name in self.only


def parse_options(arguments: Sequence[str]) -> Options:
    """The options of this command line; ends the process with 2 if they are wrong."""
    parser = argparse.ArgumentParser(prog="bench", description="Measures antrean beside its alternatives.")
    parser.add_argument("--quick", action="store_true", help="everything once, small, in under a minute")
    parser.add_argument("--slots", help="calls in flight, comma-separated, instead of the usual measures")
    parser.add_argument("--latency", help="seconds that the simulated endpoint takes, comma-separated (2)")
    parser.add_argument(
        "--jobs", type=int, help="jobs a contender (eight times the slots, or some seconds' worth)"
    )
    parser.add_argument("--only", help=f"comma-separated: {', '.join((*CONTENDERS, *EXTRAS))}")
    parser.add_argument("--repeat", type=int, default=1, help="rounds, interleaved; medians are shown")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of results")
    parser.add_argument("--scale", action="store_true", help="also 1,000,000 rows (some minutes)")
    parser.add_argument("--slope", action="store_true", help="also memory over many jobs (some minutes)")
    given = parser.parse_args(arguments)
    is_quick = given.quick
    usual_s = 0.5 if is_quick else 2.0
    try:
        slots = tuple(int(part) for part in (given.slots or ("50" if is_quick else "100,500")).split(","))
    except ValueError:
        parser.error("--slots takes whole numbers, as in 100,500")
    try:
        latencies_s = tuple(float(part) for part in (given.latency or str(usual_s)).split(","))
    except ValueError:
        parser.error("--latency takes seconds, as in 0.5,2")
    if min(slots) < 1 or given.repeat < 1 or (given.jobs is not None and given.jobs < 1):
        parser.error("--slots, --jobs and --repeat start at 1")
    if not all(0 < latency_s < math.inf for latency_s in latencies_s):
        parser.error("--latency must be above 0: the ceiling is slots / latency")
    measures: tuple[Measure, ...] = _QUICK if is_quick else MEASURES
    if given.slots is not None or given.latency is not None:
        measures = tuple(Measure(n, latency_s) for latency_s in latencies_s for n in slots)
    known = (*CONTENDERS, *EXTRAS)
    only = known if given.only is None else tuple(part.strip() for part in given.only.split(","))
    unknown = [name for name in only if name not in known]
    if unknown:
        parser.error(f"--only knows no {unknown[0]}: choose from {', '.join(known)}")
    return Options(
        measures=measures,
        latency_s=latencies_s[-1],
        jobs=given.jobs,
        only=only,
        out=given.out,
        repeat=given.repeat,
        submit_lines=1_000_000 if given.scale else 20_000 if is_quick else 200_000,
        backlog=1_000_000 if given.scale else 5_000 if is_quick else 100_000,
        lone_probes=8 if is_quick else 40,
        is_scale=given.scale,
        is_slope=given.slope,
        is_quick=is_quick,
    )
