"""What a run of the benchmarks is told on its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = ("antrean-sqlite", "antrean-postgresql", "openai", "openai-aiohttp", "celery-requests")
EXTRAS = ("submit", "lone")


@dataclass(frozen=True, slots=True)
class Options:
    """One run. `jobs` None: eight waves of the slots for each contender."""

    slots: tuple[int, ...]
    latency_s: float
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

    def job_count(self, slots: int) -> int:
        """Jobs of one contender: enough for a ramp-up, a drain, and some waves between them."""
        return max(slots * 4, slots * 8 if self.jobs is None else self.jobs)

    def has(self, name: str) -> bool:
        return name in self.only


def parse_options(arguments: Sequence[str]) -> Options:
    """The options of this command line; ends the process with 2 if they are wrong."""
    parser = argparse.ArgumentParser(prog="bench", description="Measures antrean beside its alternatives.")
    parser.add_argument("--quick", action="store_true", help="everything once, small, in under a minute")
    parser.add_argument("--slots", help="calls in flight, comma-separated (100,500)")
    parser.add_argument("--latency", type=float, help="seconds that the simulated endpoint takes (2)")
    parser.add_argument("--jobs", type=int, help="jobs a contender (eight times the slots)")
    parser.add_argument("--only", help=f"comma-separated: {', '.join((*CONTENDERS, *EXTRAS))}")
    parser.add_argument("--repeat", type=int, default=1, help="rounds, interleaved; medians are shown")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of results")
    parser.add_argument("--scale", action="store_true", help="also 1,000,000 rows (some minutes)")
    parser.add_argument("--slope", action="store_true", help="also memory over many jobs (some minutes)")
    given = parser.parse_args(arguments)
    is_quick = given.quick
    try:
        slots = tuple(int(part) for part in (given.slots or ("50" if is_quick else "100,500")).split(","))
    except ValueError:
        parser.error("--slots takes whole numbers, as in 100,500")
    if min(slots) < 1 or given.repeat < 1 or (given.jobs is not None and given.jobs < 1):
        parser.error("--slots, --jobs and --repeat start at 1")
    latency_s = given.latency if given.latency is not None else (0.5 if is_quick else 2.0)
    if latency_s <= 0:
        parser.error("--latency must be above 0: the ceiling is slots / latency")
    known = (*CONTENDERS, *EXTRAS)
    only = known if given.only is None else tuple(part.strip() for part in given.only.split(","))
    unknown = [name for name in only if name not in known]
    if unknown:
        parser.error(f"--only knows no {unknown[0]}: choose from {', '.join(known)}")
    return Options(
        slots=slots,
        latency_s=latency_s,
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
