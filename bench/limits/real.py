"""Real contenders against the simulator: antrean with a fixed number or `auto`, and the official client."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contenders import Shop, Stage, open_shop
from bench.limits.figures import Rows, rows_of
from bench.limits.scenarios import Scenario
from bench.processes import BenchError, begin, end, wait_until
from bench.requests_file import write_requests
from bench.servers import Broker, Simulator
from worker.cli.lazy import HOMES, load_commands
from worker.errors import AntreanError
from worker.settings import load_settings

OFFICIAL_SLOTS, OFFICIAL_RETRIES = 100, 10
_LOOK_EVERY_S = 0.05
_FIRST_CALL_WITHIN_S = 60.0
_PATIENCE_S = 150.0


class NotBuilt(Exception):
    """What this version of antrean does not have."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the endpoint saw of a run, and its counts at the end."""

    rows: Rows
    stats: dict[str, Any]


def run_real(contender: str, scenario: Scenario, folder: Path, broker: Broker) -> Seen:
    """Plays the scenario once. Raises NotBuilt if this version has no such thing, BenchError if it went wrong."""
    if contender == "openai":
        return _play(scenario, folder, broker, _official(scenario, folder))
    concurrency = concurrency_of(contender, scenario)
    return _play(scenario, folder, broker, _antrean(scenario, concurrency))


def concurrency_of(contender: str, scenario: Scenario) -> int | str:
    """The setting of each worker: a number, or `auto`."""
    if contender == "auto":
        return "auto"
    if contender == "right":
        return scenario.right // scenario.workers
    return int(contender.removeprefix("fixed-"))


def require_setting(**settings: object) -> None:
    """Raises NotBuilt if this version does not take such settings."""
    try:
        load_settings(_env_file=None, api_key="k", **settings)
    except (AntreanError, TypeError):
        raise NotBuilt from None


def require_command(name: str) -> None:
    """Raises NotBuilt if this version has no such command."""
    if name not in HOMES:
        raise NotBuilt


def require_option(command: str, option: str) -> None:
    """Raises NotBuilt if this version's command has no such option."""
    require_command(command)
    one = load_commands(HOMES[command])[command]
    if not any(option in param.opts for param in one.params):
        raise NotBuilt


Starter = Callable[[Stage], Any]


def _play(scenario: Scenario, folder: Path, broker: Broker, contender: Starter) -> Seen:
    simulator = Simulator(scenario.endpoint["latency_s"], scenario.endpoint)
    try:
        broker.reset()
        stage = Stage(folder, simulator, broker, None, scenario.endpoint["latency_s"])
        with contender(stage) as is_over:
            return _watch(scenario, simulator, is_over)
    finally:
        simulator.close()


def _watch(scenario: Scenario, simulator: Simulator, is_over: Callable[[], bool]) -> Seen:
    """Waits for the first call, plays the timetable from there, and returns what was seen when it is over."""
    wait_until(
        lambda: simulator.stats()["calls"] or is_over(),
        within_s=_FIRST_CALL_WITHIN_S,
        what="the first call comes",
        every_s=_LOOK_EVERY_S,
    )
    began_s = time.monotonic()
    if scenario.steps:
        simulator.change({"timetable": list(scenario.steps)})
    end_s = began_s + (scenario.length_s or _PATIENCE_S)
    while time.monotonic() < end_s and not is_over():
        if simulator.stats()["paid"] >= scenario.jobs:
            break
        time.sleep(_LOOK_EVERY_S * 2)
    stats = simulator.stats()
    rows = rows_of(simulator.series())
    if not rows:
        raise BenchError("not a single call came")
    return Seen(rows, stats)


def _antrean(scenario: Scenario, concurrency: int | str) -> Starter:
    @contextmanager
    def start(stage: Stage) -> Iterator[Callable[[], bool]]:
        if concurrency == "auto":
            require_setting(concurrency="auto")
        shop = open_shop(stage, "sqlite")
        tell_limits(shop, scenario, concurrency)
        file = write_requests(shop.folder / "requests.jsonl", scenario.jobs, max_tokens=scenario.max_tokens)
        shop.submit(file)
        with ExitStack() as workers:
            for number in range(scenario.workers):
                workers.enter_context(shop.worker(concurrency, f"bench{number + 1}"))
            yield lambda: False

    return start


def tell_limits(shop: Shop, scenario: Scenario, concurrency: int | str) -> None:
    """Tells antrean the limits of the scenario, if it can keep any. A fixed number of slots must do without."""
    if concurrency != "auto" or not scenario.told:
        return
    require_command("limits")
    options = [part for name, value in scenario.told.items() for part in (f"--{name}", str(value))]
    shop.command("limits", "set", *options)


def _official(scenario: Scenario, folder: Path) -> Starter:
    @contextmanager
    def start(stage: Stage) -> Iterator[Callable[[], bool]]:
        place = stage.subfolder("openai")
        process: subprocess.Popen[bytes] = begin(
            *(
                "bench.official_client",
                stage.simulator.url,
                str(OFFICIAL_SLOTS),
                str(scenario.jobs),
                "default",
            ),
            *(str(place / "times"), str(OFFICIAL_RETRIES), str(scenario.max_tokens or 0)),
            folder=place,
        )
        try:
            yield lambda: process.poll() is not None
        finally:
            end(process)

    return start
