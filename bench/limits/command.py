"""`python -m bench limits`: how well limits are found and kept, simulated and by real workers, in one table."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from bench.limits.extras import (
    BUDGET_JOBS,
    BUDGET_SLOTS,
    BUDGET_TOKENS,
    BUDGET_WANTED,
    CPU_WANTED,
    TWO_ENDPOINTS_WANTED,
    run_budget,
    run_cpu,
    run_two_endpoints,
)
from bench.limits.real import NotBuilt, run_real
from bench.limits.report import CONTENDERS, NOT_BUILT, Result, format_results
from bench.limits.scenarios import SCENARIOS, Scenario
from bench.limits.simulated import run_simulated
from bench.machine import describe_machine
from bench.processes import BenchError
from bench.report import format_machine
from bench.servers import Broker

EXTRAS = ("budget", "two-endpoints", "cpu")
NAMES = (*SCENARIOS, *EXTRAS)
_NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Options:
    """One run: which scenarios, by whom, how long, and in which form."""

    scenarios: tuple[str, ...]
    contenders: tuple[str, ...]
    is_quick: bool
    is_json: bool


def parse_options(arguments: Sequence[str]) -> Options:
    """The options of this command line; ends the process with 2 if they are wrong."""
    parser = argparse.ArgumentParser(prog="bench limits", description=__doc__, allow_abbrev=False)
    parser.add_argument("scenarios", nargs="*", help=f"all unless named: {', '.join(NAMES)}")
    parser.add_argument("--contenders", help=f"comma-separated: {', '.join(CONTENDERS)}")
    parser.add_argument("--quick", action="store_true", help="short ones: they show that it runs, no more")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON in place of the table")
    given = parser.parse_args(arguments)
    scenarios = tuple(given.scenarios) or NAMES
    contenders = (
        tuple(CONTENDERS)
        if given.contenders is None
        else tuple(part.strip() for part in given.contenders.split(","))
    )
    for name, known in (
        *((one, NAMES) for one in scenarios),
        *((one, tuple(CONTENDERS)) for one in contenders),
    ):
        if name not in known:
            parser.error(f"there is no {name!r}: choose from {', '.join(known)}")
    return Options(scenarios, contenders, is_quick=given.quick, is_json=given.json)


def main(arguments: Sequence[str]) -> int:
    """0 if all was measured that is built, 1 if something could not be."""
    options = parse_options(arguments)
    machine = describe_machine()
    folder = Path(tempfile.mkdtemp(prefix="anb"))  # short, because sockets go below it
    problems: list[str] = []
    results: list[Result] = []
    broker: Broker | None = None
    try:
        broker = Broker(folder)
        for name in options.scenarios:
            results.append(_run(name, options, folder, broker, problems))
    except KeyboardInterrupt:
        problems.append("what came after: interrupted")  # what was measured is told
    finally:
        if broker is not None:
            broker.close()
        shutil.rmtree(folder, ignore_errors=True)
    if options.is_json:
        told = {
            "machine": machine,
            "is_quick": options.is_quick,
            "scenarios": {result.name: _as_json(result) for result in results},
            "problems": problems,
        }
        sys.stdout.write(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        table = format_results(results, is_judged=not options.is_quick)
        parts = [format_machine(machine, psutil.getloadavg()), table]
        parts += [f"NOT MEASURED {problem}" for problem in problems]
        sys.stdout.write("\n\n".join(parts) + "\n")
    return 1 if problems else 0


def _run(name: str, options: Options, folder: Path, broker: Broker, problems: list[str]) -> Result:
    if name in SCENARIOS:
        scenario = SCENARIOS[name](is_quick=options.is_quick)
        result = Result(name, scenario.title, scenario.wanted)
        for contender in scenario.contenders:
            if contender in options.contenders:
                with _noting_trouble(result, contender, problems):
                    result.found[contender] = scenario.judge(_rows(contender, scenario, folder, broker))
        return result
    result = _EXTRA_RESULTS[name]()
    contender = "auto" if name != "cpu" else "right"
    with _noting_trouble(result, contender, problems):
        if name == "budget":
            result.found[contender] = run_budget(folder, broker, is_quick=options.is_quick)
        elif name == "two-endpoints":
            result.found[contender] = run_two_endpoints(folder, broker, is_quick=options.is_quick)
        else:
            result.found["auto"] = NOT_BUILT
            result.found.update(run_cpu(folder, broker, is_quick=options.is_quick))
    return result


def _rows(contender: str, scenario: Scenario, folder: Path, broker: Broker) -> Any:
    if contender == "simulation":
        return run_simulated(scenario)
    return run_real(contender, scenario, folder, broker).rows


@contextmanager
def _noting_trouble(result: Result, contender: str, problems: list[str]) -> Iterator[None]:
    """Notes in the result, and among the problems, what could not be measured."""
    sys.stderr.write(f"{result.name}, {CONTENDERS[contender]} …\n")
    sys.stderr.flush()
    try:
        yield
    except NotBuilt:
        result.found[contender] = NOT_BUILT
    except (BenchError, ValueError) as exc:
        result.found[contender] = _NOT_MEASURED
        problems.append(f"{result.name}, {CONTENDERS[contender]}: {exc}")


def _budget_result() -> Result:
    title = f"{BUDGET_TOKENS:,} tokens, {BUDGET_JOBS:,} jobs, {BUDGET_SLOTS} slots"
    return Result("budget", title, BUDGET_WANTED)


def _two_endpoints_result() -> Result:
    return Result("two-endpoints", "one dies in mid-run", TWO_ENDPOINTS_WANTED)


def _cpu_result() -> Result:
    return Result("cpu", "100 slots, calls of 0.4 to 0.6 s", CPU_WANTED)


_EXTRA_RESULTS = {"budget": _budget_result, "two-endpoints": _two_endpoints_result, "cpu": _cpu_result}


def _as_json(result: Result) -> Mapping[str, Any]:
    return {
        "title": result.title,
        "wanted": {name: {"low": one.low, "high": one.high} for name, one in result.wanted.items()},
        "found": result.found,
    }
