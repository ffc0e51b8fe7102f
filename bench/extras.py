"""What only antrean does: bulk submission, a lone job beside a bulk, a million rows, a long life."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.contenders import Stage, count_ended, open_shop
from bench.measure import Sample, cpu_at, percentile, rate_between, slope
from bench.processes import environment, run_to_end, wait_until
from bench.requests_file import write_requests

_SCALE_SLOTS, _SCALE_LATENCY_S, _SCALE_S = 100, 0.5, 20.0
_SLOPE_SLOTS, _SLOPE_LATENCY_S, _SLOPE_JOBS = 100, 0.1, 60_000
LONE_SLOTS = 100


def measure_submit(stage: Stage, lines: int) -> dict[str, Any]:
    """The real `antrean submit FILE --no-check` into SQLite: requests a second, its whole life counted."""
    shop = open_shop(stage, "sqlite")
    file = write_requests(shop.folder / "bulk.jsonl", lines)
    used = shop.submit(file)
    bytes_a_line = file.stat().st_size / lines
    file.unlink()
    return {
        "lines": lines,
        "bytes_a_line": bytes_a_line,
        "wall_s": used.wall_s,
        "requests_per_s": lines / used.wall_s,
        "cpu_ms": used.cpu_s * 1000 / lines,
        "peak_mb": used.peak_bytes / 1e6,
    }


def measure_lone(stage: Stage, backlog: int, probes: int) -> dict[str, Any]:
    """Milliseconds from `complete_chat.delay` to the stored result, beyond the endpoint's own.

    Measured from outside, in a process that looks at the ledger every 2 ms: first with nothing else to do,
    then while a bulk of `backlog` jobs fills all its slots.
    """
    shop = open_shop(stage, "sqlite")
    env = environment(shop.settings)
    out = shop.folder / "probes"
    figures: dict[str, Any] = {"backlog": backlog, "slots": LONE_SLOTS, "probes": probes}

    def probe(name: str) -> None:
        arguments = (str(probes), str(stage.latency_s / 2), str(out))
        run_to_end("bench.lone_probe", *arguments, folder=shop.folder, env=env)
        waits = sorted(float(line) * 1000 for line in out.read_text().split())
        beyond = [wait - stage.latency_s * 1000 for wait in waits]
        figures[name] = {f"p{share}": percentile(beyond, share) for share in (50, 95, 100)}

    with shop.ledger() as ledger, shop.worker(LONE_SLOTS):
        probe("idle")
        before = count_ended(ledger)
        shop.submit(write_requests(shop.folder / "bulk.jsonl", backlog))
        wait_until(
            lambda: count_ended(ledger) >= before + LONE_SLOTS, within_s=60, what="the bulk fills its slots"
        )
        probe("beside_bulk")
    return figures


def measure_scale(stage: Stage, rows: tuple[int, ...] = (10_000, 1_000_000)) -> dict[str, Any]:
    """CPU a job while so many jobs wait. Sets the endpoint's latency for itself."""
    figures: dict[str, Any] = {}
    stage.simulator.set_latency(_SCALE_LATENCY_S)
    try:
        for count in rows:
            stage.broker.reset()
            shop = open_shop(stage, "sqlite")
            file = write_requests(shop.folder / "bulk.jsonl", count)
            shop.submit(file)
            file.unlink()
            with shop.ledger() as ledger, shop.worker(_SCALE_SLOTS) as watch:
                wait_until(
                    lambda ledger=ledger: count_ended(ledger) >= 5 * _SCALE_SLOTS,  # type: ignore[misc]
                    within_s=120,
                    what="the worker is in its stride",
                )
                done, begin_s = count_ended(ledger), watch.samples[-1].at_s
                time.sleep(_SCALE_S)
                jobs, end_s = count_ended(ledger) - done, watch.samples[-1].at_s
            cpu_s = cpu_at(watch.samples, end_s) - cpu_at(watch.samples, begin_s)
            figures[str(count)] = {
                "cpu_ms": cpu_s * 1000 / jobs,
                "jobs_per_s": jobs / (end_s - begin_s),
                "peak_mb": watch.peak_bytes / 1e6,
            }
            _remove_ledger(shop.folder)
    finally:
        stage.simulator.set_latency(stage.latency_s)
    first, last = (figures[str(count)]["cpu_ms"] for count in (rows[0], rows[-1]))
    figures["cpu_ratio"] = last / first
    return figures


def measure_slope(stage: Stage, jobs: int = _SLOPE_JOBS) -> dict[str, Any]:
    """Resident memory of a worker over many jobs: megabytes a 100,000 jobs, over the second half."""
    stage.simulator.set_latency(_SLOPE_LATENCY_S)
    points: list[tuple[float, float]] = []
    try:
        shop = open_shop(stage, "sqlite")
        shop.submit(write_requests(shop.folder / "bulk.jsonl", jobs))
        with shop.ledger() as ledger, shop.worker(_SLOPE_SLOTS) as watch:

            def is_done() -> bool:
                ended = count_ended(ledger)
                latest: Sample | None = watch.samples[-1] if watch.samples else None
                if latest is not None:
                    points.append((ended, latest.rss_bytes / 1e6))
                return ended >= jobs

            wait_until(is_done, within_s=900, what="all jobs end", every_s=1.0)
    finally:
        stage.simulator.set_latency(stage.latency_s)
    half = [point for point in points if point[0] >= jobs / 2]
    return {
        "jobs": jobs,
        "mb_a_100_000_jobs": slope(half) * 100_000,
        "median_step_mb_a_100_000_jobs": rate_between(half) * 100_000,
        "first_mb": half[0][1],
        "last_mb": half[-1][1],
        "points": points,
    }


def _remove_ledger(folder: Path) -> None:
    for path in (folder / "home").glob("*.db*"):
        path.unlink()
