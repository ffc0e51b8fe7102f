"""A worker of several endpoints: who is called, and who is passed by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import redis

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.thread import SimulatorThread
from tests.support.ledger import rows
from tests.support.pool_house import PoolHouse, load_pool
from worker.attempt.report import Verdict
from worker.attempt.slots import Slots
from worker.storage.engine import Ledger

MODEL = "DeepSeek-V3.1"
OTHER = "Llama-3.1"


@pytest.fixture
def simulate() -> Iterator[Callable[..., SimulatorThread]]:
    opened: list[SimulatorThread] = []

    def make(**options: Any) -> SimulatorThread:
        made = SimulatorThread(SimulatorConfig(**{"latency_s": 0.02, "models": (MODEL, OTHER)} | options))
        made.__enter__()
        opened.append(made)
        return made

    yield make
    for one in opened:
        one.__exit__(None, None, None)


@pytest.fixture
def work(sqlite_ledger: Ledger, valkey: redis.Redis, tmp_path: Path) -> Iterator[Callable[..., PoolHouse]]:
    opened: list[PoolHouse] = []

    def begin(*, settings: dict[str, Any] | None = None, **tables: dict[str, Any]) -> PoolHouse:
        told = load_pool(tmp_path / "house", tables, **{"max_attempts": 2, **(settings or {})})
        opened.append(PoolHouse(sqlite_ledger, valkey, told))
        return opened[-1]

    yield begin
    for one in opened:
        one.close()


def table(simulator: SimulatorThread, **facts: Any) -> dict[str, Any]:
    return {"base_url": simulator.url, "api_key": "k", "concurrency": 16, "lone_slots": 0, **facts}


def wait_until(is_true: Callable[[], bool], *, within_s: float = 20.0) -> None:
    for _ in range(round(within_s / 0.02)):
        if is_true():
            return
        Event().wait(0.02)
    raise AssertionError("it never came true")


def test_calls_are_spread_by_weight_while_both_have_room(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    big, small = simulate(latency_s=0.005), simulate(latency_s=0.005)
    house = work(big=table(big, weight=3), small=table(small))
    for _ in range(20):  # no more at once than either has room for
        before = house.states()["succeeded"]
        house.queue(8, model=MODEL)
        wait_until(lambda: house.states()["succeeded"] == before + 8)  # noqa: B023
    calls = big.stats()["calls"], small.stats()["calls"]
    assert sum(calls) == 160
    assert calls[0] == pytest.approx(120, abs=12), calls


def test_a_slow_endpoint_gets_what_it_can_take_and_the_other_the_rest(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    slow, fast = simulate(latency_s=1.0), simulate(latency_s=0.02)
    house = work(slow=table(slow, weight=3, concurrency=4), fast=table(fast, concurrency=16))
    house.queue(400, model=MODEL)
    wait_until(lambda: house.states()["succeeded"] == 400)
    assert slow.stats()["max_in_flight"] == 4
    assert slow.stats()["calls"] < 80
    assert slow.stats()["calls"] + fast.stats()["calls"] == 400


def test_a_job_goes_only_to_an_endpoint_that_serves_its_model(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    one, other = simulate(models=(MODEL,)), simulate(models=(OTHER,))
    house = work(one=table(one, models=[MODEL]), other=table(other, models=["Llama*"]))
    mine, others = house.queue(40, model=MODEL), house.queue(30, model=OTHER, batch="c")
    wait_until(lambda: house.states()["succeeded"] == 70)
    assert set(one.calls()) == set(mine)
    assert set(other.calls()) == set(others)
    identities = {told.base_url: told.identity for told in house.settings.endpoints}
    served = {row.job_id: row.endpoint for row in rows(house.ledger, "attempts")}
    assert {served[id_] for id_ in mine} == {identities[one.url]}
    assert {served[id_] for id_ in others} == {identities[other.url]}


def test_jobs_of_a_slow_endpoint_hold_up_no_jobs_of_another(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    slow, fast = simulate(latency_s=3.0), simulate(latency_s=0.02)
    house = work(slow=table(slow, models=[MODEL], concurrency=2), fast=table(fast, models=[OTHER]))
    house.queue(700, model=MODEL, batch="a")
    house.queue(60, model=OTHER, batch="b")
    wait_until(lambda: house.states("b")["succeeded"] == 60, within_s=6)
    assert house.states("a")["running"] <= 2 + 2, "not more is claimed than is called, and the next ones"


def test_an_endpoint_that_dies_loses_no_job_and_is_called_once_a_probe_only(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    dies, lives = simulate(), simulate()
    house = work(dies=table(dies), lives=table(lives))
    house.queue(1200, model=MODEL)
    wait_until(lambda: house.states()["succeeded"] > 150)
    dies.set_faults(outage_status=503)
    gates = house.pool.routes[0].gates
    wait_until(lambda: not gates.is_known_open)
    wait_until(lambda: dies.stats()["in_flight"] == 0)
    before = dies.stats()["calls"]
    assert house.states()["succeeded"] < 1000, "there is work left for the other one"
    wait_until(lambda: house.states()["succeeded"] == 1200)
    gate = gates.endpoint.current_gate()
    assert gate is not None
    # Its models are asked for, which is no call; so at most one call a strike comes to it.
    assert dies.stats()["calls"] - before <= gate.strikes
    assert house.states() == {"succeeded": 1200}
    assert dies.stats()["paid"] + lives.stats()["paid"] == 1200
    assert house.verdicts[Verdict.FAILED] == 0


def test_an_endpoint_that_comes_back_is_called_again(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    away, there = simulate(outage_status=503), simulate(latency_s=0.1)
    house = work(away=table(away), there=table(there, concurrency=4))
    house.queue(600, model=MODEL)
    wait_until(lambda: not house.pool.routes[0].gates.is_known_open)
    wait_until(lambda: house.states()["succeeded"] > 20)
    away.set_faults(outage_status=None)
    wait_until(lambda: away.stats()["paid"] > 100, within_s=12)
    wait_until(lambda: house.states()["succeeded"] == 600)


def test_jobs_of_a_dead_endpoint_hold_up_no_jobs_of_another_and_are_called_when_it_is_back(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    dead, lives = simulate(outage_status=503), simulate()
    house = work(dead=table(dead, models=[MODEL]), lives=table(lives, models=[OTHER]))
    house.queue(800, model=MODEL, batch="a")
    wait_until(lambda: not house.pool.routes[0].gates.is_known_open)
    # Also in one batch, behind more of them than are read at once.
    mixed = house.queue(700, model=MODEL, batch="mixed")
    house.queue(60, model=OTHER, batch="mixed")
    house.queue(60, model=OTHER, batch="b")
    wait_until(lambda: house.states("b")["succeeded"] == 60, within_s=8)
    wait_until(lambda: house.states("mixed")["succeeded"] == 60, within_s=8)
    assert house.states("a")["succeeded"] == 0
    assert len(mixed) == 700
    refused = house.verdicts[Verdict.NOT_ADMITTED] + house.verdicts[Verdict.GIVEN_BACK]
    assert refused < 200, "they lie in the ledger, and do not go round and round"
    dead.set_faults(outage_status=None)
    wait_until(lambda: house.states()["succeeded"] == 1620, within_s=40)


def test_a_spent_quota_or_a_wrong_key_shuts_its_endpoint_only_and_burns_no_attempt(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    spent, denies, serves = simulate(key="k", spent_keys="k"), simulate(key="right"), simulate()
    house = work(spent=table(spent), denies=table(denies), serves=table(serves))
    house.queue(100, model=MODEL)
    wait_until(lambda: house.states()["succeeded"] == 100)
    assert [row.attempts for row in rows(house.ledger, "jobs") if row.attempts] == []
    assert serves.stats()["paid"] == 100
    assert not house.pool.routes[0].gates.is_known_open
    assert not house.pool.routes[1].gates.is_known_open


def test_an_endpoint_without_the_model_is_passed_by_for_this_model_only(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    lacks, has = simulate(models=(OTHER,)), simulate()
    house = work(lacks=table(lacks), has=table(has))
    house.queue(60, model=OTHER, batch="o")
    wait_until(lambda: house.states("o")["succeeded"] == 60)
    house.queue(60, model=MODEL, batch="m")
    wait_until(lambda: house.states("m")["succeeded"] == 60)
    assert [row.attempts for row in rows(house.ledger, "jobs") if row.attempts] == []
    before = lacks.stats()["paid"]
    house.queue(60, model=OTHER, batch="p")
    wait_until(lambda: house.states("p")["succeeded"] == 60)
    assert lacks.stats()["paid"] > before, "its other model is called there"


def test_lone_jobs_pass_by_an_endpoint_that_is_down(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    dead, lives = simulate(outage_status=503), simulate()
    house = work(dead=table(dead, weight=5), lives=table(lives))
    house.queue(30, model=MODEL, batch="", is_bulk=False)
    wait_until(lambda: house.states()["succeeded"] == 30)
    assert not house.pool.routes[0].gates.is_known_open


def test_a_job_whose_model_its_message_does_not_tell_is_no_messages_any_more_while_its_endpoint_is_down(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    """As one of another program, which would come again and again, were it put back."""
    dead, lives = simulate(outage_status=503), simulate()
    house = work(dead=table(dead, models=[MODEL]), lives=table(lives, models=[OTHER]))
    house.queue(20, model=MODEL)
    wait_until(lambda: not house.pool.routes[0].gates.is_known_open)
    wait_until(lambda: house.slots.active == 0)
    house.verdicts.clear()
    [id_] = house.queue(1, model=MODEL, batch="late")
    house.receive(id_, model=None)
    wait_until(lambda: house.verdicts.total() > 0)
    assert house.verdicts[Verdict.GIVEN_BACK] == 0
    [row] = rows(house.ledger, "jobs", id=id_)
    assert (row.state, row.claims, row.attempts) == ("queued", 0, 0)
    dead.set_faults(outage_status=None)
    wait_until(lambda: house.states()["succeeded"] == 21)


def test_a_job_that_no_endpoint_serves_waits_in_the_ledger(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    house = work(one=table(simulate(), models=[MODEL]), other=table(simulate(), models=["x*"]))
    [id_] = house.queue(1, model=OTHER, batch="odd")
    house.queue(20, model=MODEL)
    wait_until(lambda: house.states("b")["succeeded"] == 20)
    [row] = rows(house.ledger, "jobs", id=id_)
    assert (row.state, row.published_at_ms) == ("queued", None)
    house.receive(id_, model=OTHER)
    wait_until(lambda: house.verdicts[Verdict.NOT_ADMITTED] == 1)
    assert rows(house.ledger, "jobs", id=id_)[0].claims == 0


def test_a_job_that_the_only_table_does_not_serve_waits_in_the_ledger(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    only = simulate()
    house = work(only=table(only, models=[MODEL]))
    [odd] = house.queue(1, model=OTHER, batch="odd")
    house.queue(20, model=MODEL)
    wait_until(lambda: house.states("b")["succeeded"] == 20)
    house.receive(odd, model=OTHER)
    wait_until(lambda: house.verdicts[Verdict.NOT_ADMITTED] == 1)
    [row] = rows(house.ledger, "jobs", id=odd)
    assert (row.state, row.claims) == ("queued", 0)
    assert only.stats()["calls"] == 20
    assert {row.endpoint for row in rows(house.ledger, "attempts")} == {None}, (
        "one endpoint has no name there"
    )


def test_with_one_table_for_all_models_the_slots_are_those_of_one_endpoint(
    simulate: Callable[..., SimulatorThread], work: Callable[..., PoolHouse]
) -> None:
    house = work(only=table(simulate()))
    house.queue(20, model=MODEL)
    wait_until(lambda: house.states()["succeeded"] == 20)
    assert type(house.slots) is Slots
    assert house.pool.spread is None
    assert {row.endpoint for row in rows(house.ledger, "attempts")} == {None}
