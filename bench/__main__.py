"""`python -m bench`: everything in one go, against the simulator. Prints tables, keeps JSON, draws a chart."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import psutil

from bench.contenders import RUNNERS, Stage, measure
from bench.extras import measure_lone, measure_scale, measure_slope, measure_submit
from bench.machine import describe_machine
from bench.measure import medians
from bench.options import CONTENDERS, Measure, Options, parse_options
from bench.processes import BenchError
from bench.report import (
    format_extras,
    format_machine,
    format_ratios,
    format_servers,
    format_slots,
)
from bench.servers import Broker, Postgres, Simulator


def main(arguments: Sequence[str]) -> int:
    """0 if all was measured, 1 if something could not be."""
    if arguments[:1] == ["limits"]:
        from bench.limits.command import main as measure_limits  # local: a bench of its own

        return measure_limits(arguments[1:])
    options = parse_options(arguments)
    started_s = time.monotonic()
    machine = describe_machine()
    # Short, because sockets go below it.
    folder = Path(tempfile.mkdtemp(prefix="anb"))
    try:
        rounds, extras, problems = _measure_all(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = {one: {name: medians(runs) for name, runs in found.items()} for one, found in rounds.items()}
    took_s = time.monotonic() - started_s
    text = _format(options, machine, results, extras, took_s)
    for problem in problems:
        text += f"\nNOT MEASURED {problem}\n"
    _keep(options, machine, rounds, results, extras, problems, text)
    say(text)
    return 1 if problems else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _measure_all(
    options: Options, folder: Path
) -> tuple[dict[Measure, dict[str, list[dict[str, Any]]]], dict[str, Any], list[str]]:
    rounds: dict[Measure, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    extras: dict[str, Any] = {}
    problems: list[str] = []
    servers: list[Simulator | Broker | Postgres] = []
    try:
        servers.append(simulator := Simulator(options.latency_s))
        servers.append(broker := Broker(folder))
        postgres = Postgres(folder) if options.has("antrean-postgresql") else None
        if postgres is not None:
            servers.append(postgres)
        stage = Stage(folder, simulator, broker, postgres, options.latency_s)
        # Interleaved: what the machine does meanwhile hits every contender alike.
        for number in range(options.repeat):
            for one in options.measures:
                at = replace(stage, latency_s=one.latency_s)
                simulator.set_latency(one.latency_s)
                for name in (name for name in CONTENDERS if options.has(name)):
                    _note(f"{name}, {one}, round {number + 1} of {options.repeat} …")
                    try:
                        figures = measure(RUNNERS[name], at, one.slots, options.job_count(one))
                    except (BenchError, ValueError) as exc:
                        problems.append(f"{name}, {one}: {exc}")
                        continue
                    rounds[one][name].append(figures)
        simulator.set_latency(options.latency_s)
        works: tuple[tuple[str, bool, Callable[[], dict[str, Any]]], ...] = (
            ("submit", options.has("submit"), lambda: measure_submit(stage, options.submit_lines)),
            ("lone", options.has("lone"), lambda: measure_lone(stage, options.backlog, options.lone_probes)),
            ("scale", options.is_scale, lambda: measure_scale(stage)),
            ("slope", options.is_slope, lambda: measure_slope(stage)),
        )
        for name, is_wanted, work in works:
            if not is_wanted:
                continue
            _note(f"{name} …")
            broker.reset()
            try:
                extras[name] = work()
            except (BenchError, ValueError) as exc:
                problems.append(f"{name}: {exc}")
    except KeyboardInterrupt:
        problems.append("what came after: interrupted")  # what was measured is kept
    finally:
        for server in reversed(servers):
            server.close()
    return rounds, extras, problems


def _format(
    options: Options,
    machine: dict[str, Any],
    results: dict[Measure, dict[str, dict[str, Any]]],
    extras: dict[str, Any],
    took_s: float,
) -> str:
    parts = [format_machine(machine, psutil.getloadavg())]
    for one, found in results.items():
        parts.append(f"{one}, {options.job_count(one):,} jobs each:")
        parts += [format_slots(one.slots, one.latency_s, found), format_ratios(found)]
        parts.append(format_servers(found))
        parts += [f"{name}: {told['failed']} jobs failed" for name, told in found.items() if told["failed"]]
    parts.append(format_extras(extras))
    parts.append(f"Took {took_s:.0f} s.")
    return "\n\n".join(part for part in parts if part)


def _keep(
    options: Options,
    machine: dict[str, Any],
    rounds: dict[Measure, dict[str, list[dict[str, Any]]]],
    results: dict[Measure, dict[str, dict[str, Any]]],
    extras: dict[str, Any],
    problems: list[str],
    text: str,
) -> None:
    # Local: matplotlib takes a second, which would count as load.
    from bench.chart import draw_chart

    options.out.mkdir(parents=True, exist_ok=True)
    ignored = options.out / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n")
    stem = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + ("-quick" if options.is_quick else "")
    kept = {
        "machine": machine,
        "rounds": {str(one): dict(found) for one, found in rounds.items()},
        "medians": {str(one): found for one, found in results.items()},
        "extras": extras,
        "problems": problems,
    }
    (options.out / f"{stem}.json").write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2))
    (options.out / f"{stem}.md").write_text(text + "\n")
    if any(results.values()):
        title = f"{machine['date']}, {machine['cores']} cores"
        draw_chart(options.out / f"{stem}.svg", results, title)
    _note(f"kept as {options.out / stem}.json, .md and .svg")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
