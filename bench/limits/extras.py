"""What is not seen at the endpoint alone: a budget that is kept, CPU a job, and an endpoint of two that dies."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from sqlalchemy import func, select

from bench.contenders import Shop, Stage, count_ended, fetch_spans, open_shop
from bench.limits.real import NotBuilt, require_command, require_option, require_setting
from bench.limits.scenarios import COUNT, PERCENT, SECONDS, Figures, Wanted
from bench.measure import cpu_per_job_ms, find_steady
from bench.processes import wait_until
from bench.requests_file import write_requests
from bench.servers import Broker, Simulator
from worker.broker.client import open_client
from worker.errors import AntreanError
from worker.settings import load_settings
from worker.storage.engine import Ledger
from worker.storage.tables import jobs as job_rows
from worker.throttle.redis_store import RedisGateStore

BUDGET_TOKENS, BUDGET_JOBS, BUDGET_SLOTS = 100_000, 1_000, 64
_BUDGET_ANSWER = 200  # `max_tokens`: half of the answers would be longer
_QUIET_S = 8.0  # nothing answered for so long: the batch has paused
_CPU_SLOTS, _CPU_LATENCY_S = 100, 0.5
# Calls that all begin together and take the same time end together, and so many answers are cheaper to write. That is
# so with a number, and not with `auto`, which begins with a few: without this they would not be compared.
_CPU_JITTER = 0.2
_CPU_MOST = 106  # at once, of which 100 are for bulk: as many as with the number
# Limits that are kept and never reached.
_FAR_LIMITS = ("--requests-per-minute", "1000000", "--tokens-per-minute", "1000000000")

BUDGET_WANTED: Mapping[str, Wanted] = {
    "overshoot": Wanted("tokens beyond it", COUNT, high=0.0),
    "used": Wanted("of it used", PERCENT),
}
CPU_WANTED: Mapping[str, Wanted] = {
    "cpu_ms": Wanted("CPU a job", "ms"),
    "ratio": Wanted("beside a fixed number", "x", high=1.05),
}
TWO_ENDPOINTS_WANTED: Mapping[str, Wanted] = {
    "lost": Wanted("jobs lost", COUNT, high=0.0),
    "calls_to_the_dead": Wanted("calls to the dead one, a probe", COUNT, high=1.0),
    "seconds": Wanted("seconds", SECONDS),
}


def budget_figures(tokens: int, budget: int) -> Figures:
    """How far the tokens of all answers went beyond the budget, and which part of it was used. Pure."""
    return {"overshoot": float(max(0, tokens - budget)), "used": tokens / budget}


def run_budget(folder: Path, broker: Broker, *, is_quick: bool) -> Figures:
    """A batch with a budget, in many slots, with answers of different length. Raises NotBuilt.

    Each request says how long its answer may be, so no call can take more than is reserved for it.
    """
    require_option("submit", "--budget")
    jobs, tokens = (200, BUDGET_TOKENS // 5) if is_quick else (BUDGET_JOBS, BUDGET_TOKENS)
    options = {"answer_tokens": 200, "answer_spread": 0.8}
    simulator = Simulator(0.2, options)
    try:
        broker.reset()
        stage = Stage(folder, simulator, broker, None, 0.2)
        shop = open_shop(stage, "sqlite")
        file = write_requests(shop.folder / "requests.jsonl", jobs, max_tokens=_BUDGET_ANSWER)
        shop.submit(file, "--budget", f"{tokens}tok")
        with shop.worker(BUDGET_SLOTS):
            _wait_for_quiet(simulator, jobs)
        return budget_figures(simulator.stats()["tokens"], tokens)
    finally:
        simulator.close()


def _wait_for_quiet(simulator: Simulator, jobs: int) -> None:
    wait_until(lambda: simulator.stats()["paid"], within_s=60, what="the first answer comes")
    paid, at_s = 0, time.monotonic()

    def is_quiet() -> bool:
        nonlocal paid, at_s
        now = simulator.stats()["paid"]
        if now != paid:
            paid, at_s = now, time.monotonic()
        return paid >= jobs or time.monotonic() - at_s > _QUIET_S

    wait_until(is_quiet, within_s=300, what="the batch stops at its budget", every_s=0.2)


def run_cpu(folder: Path, broker: Broker, *, is_quick: bool) -> dict[str, Figures]:
    """CPU a job with a fixed number, and with all limits on, at the same time; medians. Without "auto" if not built."""
    jobs, rounds = (600, 1) if is_quick else (4000, 3)
    ways: dict[str, list[float]] = {"right": []}
    try:
        require_setting(concurrency="auto", max_concurrency=_CPU_MOST)
        require_command("limits")
    except NotBuilt:
        pass
    else:
        ways["auto"] = []
    for _ in range(rounds):
        for way, cpu_ms in _measure_cpu(folder, broker, jobs, tuple(ways)).items():
            ways[way].append(cpu_ms)
    return cpu_figures({way: median(found) for way, found in ways.items()})


def cpu_figures(cpu_ms: Mapping[str, float]) -> dict[str, Figures]:
    """The same with each way's multiple of the fixed number. Pure."""
    base = cpu_ms["right"]
    found: dict[str, Figures] = {way: {"cpu_ms": value} for way, value in cpu_ms.items()}
    for way in found.keys() - {"right"}:
        found[way]["ratio"] = cpu_ms[way] / base if base else None
    return found


def _measure_cpu(folder: Path, broker: Broker, jobs: int, ways: Sequence[str]) -> dict[str, float]:
    """CPU a job of workers that work at the same time: a machine's speed changes by more than what is looked for.

    The first fifth and the last are left out: in the first one `auto` finds its limit.
    """
    with ExitStack() as stack:
        broker.reset()
        shops: dict[str, Shop] = {}
        for way in ways:
            simulator = Simulator(_CPU_LATENCY_S, {"latency_jitter": _CPU_JITTER})
            stack.callback(simulator.close)
            stage = Stage(folder, simulator, broker, None, _CPU_LATENCY_S)
            shop = shops[way] = open_shop(
                stage, "sqlite", **({"max_concurrency": _CPU_MOST} if way == "auto" else {})
            )
            if way == "auto":
                shop.command("limits", "set", *_FAR_LIMITS)
            shop.submit(write_requests(shop.folder / "requests.jsonl", jobs))
        ledgers = {way: stack.enter_context(shop.ledger()) for way, shop in shops.items()}
        watches = {
            way: stack.enter_context(shop.worker("auto" if way == "auto" else _CPU_SLOTS, way))
            for way, shop in shops.items()
        }
        wait_until(
            lambda: all(count_ended(ledger) >= jobs for ledger in ledgers.values()),
            within_s=300,
            what="all jobs end",
            every_s=0.4,
        )
        time.sleep(0.3)  # one more sample
        return {
            way: cpu_per_job_ms(watch.samples, find_steady(fetch_spans(ledgers[way])[0], jobs // 5))
            for way, watch in watches.items()
        }


def run_two_endpoints(folder: Path, broker: Broker, *, is_quick: bool) -> Figures:
    """Two endpoints, of which one answers 503 from the middle on. Raises NotBuilt."""
    jobs, slots = (600, 16) if is_quick else (4_000, 40)
    dies, lives = Simulator(_CPU_LATENCY_S), Simulator(_CPU_LATENCY_S)
    try:
        tables = {
            name: {"base_url": one.url, "api_key": "k", "concurrency": slots}
            for name, one in (("dies", dies), ("lives", lives))
        }
        try:
            identity = load_settings(endpoint_tables=tables, _env_file=None).endpoints[0].identity
        except (AntreanError, AttributeError, TypeError):
            raise NotBuilt from None
        broker.reset()
        shop = open_shop(Stage(folder, dies, broker, None, _CPU_LATENCY_S), "sqlite")
        del shop.settings["base_url"], shop.settings["api_key"]
        shop.settings["endpoint_tables"] = json.dumps(tables)
        shop.submit(write_requests(shop.folder / "requests.jsonl", jobs))
        store = RedisGateStore(open_client(broker.url), identity)
        with shop.ledger() as ledger, shop.worker(slots):
            return _watch_one_die(ledger, dies, store, jobs)
    finally:
        dies.close()
        lives.close()


def _watch_one_die(ledger: Ledger, dies: Simulator, store: RedisGateStore, jobs: int) -> Figures:
    wait_until(lambda: dies.stats()["calls"], within_s=60, what="the first call comes")
    began_s = time.monotonic()
    wait_until(lambda: dies.stats()["paid"] >= jobs // 6, within_s=300, what="the run is in its middle")
    dies.change({"outage_status": 503})

    def is_shut() -> bool:
        gate = store.fetch()
        return gate is not None and gate.needs_probe and not dies.stats()["in_flight"]

    wait_until(is_shut, within_s=60, what="its gate is shut", every_s=0.02)
    before, gate = dies.stats()["calls"], store.fetch()
    strikes = 0 if gate is None else gate.strikes
    wait_until(lambda: count_ended(ledger) >= jobs, within_s=300, what="all jobs end", every_s=0.2)
    seconds = time.monotonic() - began_s
    gate = store.fetch()
    probes = max(1, (0 if gate is None else gate.strikes) - strikes)
    with ledger.read() as connection:
        answered = connection.execute(
            select(func.count()).where(job_rows.c.state == "succeeded")
        ).scalar_one()
    return two_endpoints_figures(jobs - answered, dies.stats()["calls"] - before, probes, seconds)


def two_endpoints_figures(lost: int, calls: int, probes: int, seconds: float) -> Figures:
    """The figures, from the calls that came to the dead endpoint after its gate shut. Pure."""
    return {"lost": float(lost), "calls_to_the_dead": calls / probes, "seconds": seconds}
